"""Images: the OCI model, and how images get into the store and out of it."""
