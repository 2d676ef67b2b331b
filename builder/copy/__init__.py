"""COPY and ADD: which files are taken, and how they are written into a layer."""
