"""What the module host_state reads with, part by part; runs on hosts."""
