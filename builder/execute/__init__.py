"""Executors: each takes an op and makes a snapshot."""
