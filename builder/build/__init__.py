"""One build, from its request to its outputs."""
