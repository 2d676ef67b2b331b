"""Attestations, stored with an image: the packages in it (SBOM), and how it was built (provenance)."""
