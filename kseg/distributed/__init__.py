"""Claim devices and hosts, and keep the hosts of a run in agreement."""
