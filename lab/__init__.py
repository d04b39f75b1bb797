"""The lab: real systemd hosts on this machine that stand in for EC2 instances and an RDS database."""
