"""What is said of an image beside it: the packages in it (SBOM), and how it was built (provenance)."""
