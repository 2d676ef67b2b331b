"""Shared caches: layers of steps, in a directory, a registry or an image (docs/cache.md)."""
