"""Root file systems of stages: mount points in them, and plain trees where overlayfs is unavailable."""
