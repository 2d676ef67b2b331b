"""The walk from an index to the manifests of its images (image-spec image-index.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, assert_never

from builder.errors import BuildError
from builder.oci import media_types
from builder.oci.errors import ImageError
from builder.oci.manifest import Entry, Index, Manifest
from builder.oci.model import ImageConfig, Platform, rank
from cache.descriptor import Descriptor

_MOST_MANIFESTS = 100  # that are read for one index
_MAX_DEPTH = 4  # of indexes in indexes


class ManifestSource(Protocol):
    """What the walk reads from. Methods verify what they return and raise BuildError."""

    def manifest(self, descriptor: Descriptor) -> Index | Manifest: ...

    def config(self, descriptor: Descriptor) -> ImageConfig: ...


def image_manifests(
    top: Index | Manifest,
    source: ManifestSource,
    wanted: Platform | None = None,
    failed: Callable[[BuildError], None] | None = None,
) -> Iterator[Manifest]:
    """Yield the manifests of the images that *top* leads to. A manifest leads to itself.

    With *wanted*, yield only those that run on that platform, the best first. An entry that states no
    platform has that of its image's config. Attestations and other artifacts are left out.

    An entry that cannot be read is reported to *failed* and left out; without *failed* its error is
    raised. Raises ImageError where indexes are nested too deeply or lead to too many manifests.
    """
    if isinstance(top, Manifest):
        yield top
    else:
        yield from _of_index(top, _Walk(source, wanted, failed), 1)


class _Walk:
    """What one walk uses, and how many more manifests it may read."""

    def __init__(
        self,
        source: ManifestSource,
        wanted: Platform | None,
        failed: Callable[[BuildError], None] | None,
    ) -> None:
        self.source = source
        self.wanted = wanted
        self.left = _MOST_MANIFESTS
        self._failed = failed

    def read(self, entry: Entry) -> Index | Manifest | None:
        """Return what *entry* names, None where that failed."""
        try:
            return self.source.manifest(entry.descriptor)
        except BuildError as error:
            if self._failed is None:
                raise
            self._failed(error)
            return None


def _of_index(index: Index, walk: _Walk, depth: int) -> Iterator[Manifest]:
    for entry in by_rank(index, walk.wanted):
        walk.left -= 1
        if walk.left < 0 or depth > _MAX_DEPTH:
            raise ImageError("an index leads to too many indexes and images")
        match walk.read(entry):
            case Index() as inner:
                yield from _of_index(inner, walk, depth + 1)
            case Manifest() as manifest:
                if walk.wanted is None or entry.platform is not None or _serves(manifest, walk, walk.wanted):
                    yield manifest
            case None:
                pass
            case other:
                assert_never(other)


def by_rank(index: Index, wanted: Platform | None) -> list[Entry]:
    """Return the entries that can run on *wanted*, the best first; those without a platform come last."""
    images = [entry for entry in index.entries if entry.is_image]
    if wanted is None:
        return images
    ranked = [(rank(entry.platform, wanted), entry) for entry in images if entry.platform is not None]
    ranked.sort(key=lambda pair: -pair[0])
    return [entry for value, entry in ranked if value] + [entry for entry in images if entry.platform is None]


def _serves(manifest: Manifest, walk: _Walk, wanted: Platform) -> bool:
    """Return whether the config of an image without a stated platform runs on *wanted*."""
    if not media_types.is_image_config(manifest.config_type):
        return False
    return rank(walk.source.config(manifest.config()).platform.to_json(), wanted) > 0
