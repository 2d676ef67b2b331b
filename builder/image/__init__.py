"""The image model: OCI config and manifest as values, and how an image is put together."""
