"""Compares the states of hosts, and shows what came of it."""
