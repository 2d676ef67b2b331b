"""Shared caches: what steps gave, taken from and left in a folder, a registry or an image (docs/cache.md)."""
