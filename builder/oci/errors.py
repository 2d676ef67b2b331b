"""Errors of images that do not follow the image specification.

ImageError          root; a BuildError
    MissingBlob     an image names a blob that is absent
"""

from __future__ import annotations

from builder.errors import BuildError


class ImageError(BuildError):
    """A manifest, index or config is malformed, or contradicts another one."""

    code = "E-IMAGE"


class MissingBlob(ImageError):
    """A descriptor names a blob that is absent."""

    code = "E-IMAGE-BLOB"
