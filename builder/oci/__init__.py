"""The image specification as values: configs, manifests, descriptors, platforms, image layouts."""
