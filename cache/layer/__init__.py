"""Layers: directories in overlayfs form, their tars, and what turns one into the other."""
