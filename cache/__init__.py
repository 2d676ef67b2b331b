"""Content, by digest: blobs, layer trees, keys and the index that joins them.

Nothing here mounts, speaks HTTP or knows a Dockerfile. Import what you need from its
module; this package imports none of them by itself, because start-up counts on every call.
"""
