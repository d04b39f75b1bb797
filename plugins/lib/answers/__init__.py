"""The boundary to the hosts: what they say is untrusted, whoever is root there."""
