"""Outputs: each turns a stored image into something that leaves the store."""
