"""The network of steps."""
