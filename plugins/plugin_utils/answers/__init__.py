"""The boundary to the hosts: what they print is untrusted."""
