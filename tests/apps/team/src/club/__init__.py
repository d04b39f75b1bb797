"""A club's members, letters and chat."""
