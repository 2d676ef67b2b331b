"""Builds in which nothing changed: what the last one left, and how it is answered from that."""
