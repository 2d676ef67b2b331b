"""Images of the store: find, read, tag, import."""

from __future__ import annotations

from collections.abc import Iterator

from builder.errors import BuildError, UsageError
from builder.oci.model import History, ImageConfig, Platform, host, parse_config, scratch
from cache.digest import DiffId, Digest, ImageId, SnapshotId
from cache.errors import CacheError
from cache.layer.blobs import layer_tar, snapshot_of
from cache.store import Store
from grammar.errors import ReferenceError_
from grammar.reference import Reference, parse_reference


def reference(name: str) -> Reference:
    """Parse an image name given by the user. Raises UsageError."""
    try:
        return parse_reference(name)
    except ReferenceError_ as error:
        raise UsageError(f"{name!r} is not an image name: {error}", code="E-NAME") from None


def new_name(name: str) -> str:
    """Return the canonical form of a new name of an image. Raises UsageError, also for one with a digest.

    A name with a digest cannot be given: the digest decides what it means.
    """
    found = reference(name)
    if found.digest:
        raise UsageError(f"{name}: a name with a digest cannot be given", "leave out what begins with @")
    return str(found)


def config_of(store: Store, image: Digest) -> ImageConfig:
    """Return the config of a stored image, verified."""
    return parse_config(store.read_blob(image), f"the config {image}")


def find(store: Store, name: str) -> tuple[Digest, ImageConfig]:
    """Return the image of a user's *name*: an image name, or the start of an image ID.

    Raises BuildError when the store has none or several.
    """
    image = None
    try:
        image = store.resolve(str(parse_reference(name)))
    except ReferenceError_:
        pass
    if image is None:
        image = _by_id(store, name.removeprefix("sha256:"))
    if image is None:
        raise BuildError(
            f"there is no image {name!r} in the store {store.root}",
            "run pybuild images for a list",
            code="E-IMAGE-NOT-FOUND",
        )
    return image, config_of(store, image)


def names_for(store: Store, given: str, image: Digest) -> tuple[str, ...]:
    """Return the canonical form of the name *given*; none if it is an image ID."""
    try:
        name = str(parse_reference(given))
    except ReferenceError_:
        return ()
    return (name,) if store.resolve(name) == image else ()


def _by_id(store: Store, start: str) -> ImageId | None:
    """Return the one tagged image whose ID starts with *start*, at least six hex digits."""
    if len(start) < 6 or not set(start) <= set("0123456789abcdef"):
        return None
    found = {image for _name, image in named(store, []) if image[7:].startswith(start)}
    if len(found) > 1:
        raise BuildError(f"{len(found)} images start with {start!r}: give more of the ID")
    return found.pop() if found else None


def named(store: Store, damaged: list[BuildError | CacheError]) -> Iterator[tuple[str, ImageId]]:
    """Yield every name with its image. Errors of unreadable records are added to *damaged*."""
    for name in store.names():
        try:
            image = store.resolve(name)
        except CacheError as error:
            damaged.append(error)
            continue
        if image is not None:  # or it was removed meanwhile
            yield name, image


def remember_platform(store: Store, name: Reference, platform: Platform, image: Digest) -> None:
    """Remember which image *name* means for a *platform* other than this machine's."""
    store.memos.set_platform_image(str(platform), str(name), ImageId(image))


def rename(store: Store, name: str, image: Digest) -> None:
    """Make *name* mean *image*, and for no platform what it meant before."""
    store.memos.forget_platform_images(name)
    store.tag(name, image)


def snapshots(store: Store, config: ImageConfig) -> tuple[SnapshotId, ...]:
    """Return the snapshots of an image, bottom first, unpacked again where only the blob is left.

    Raises CacheError.
    """
    return tuple(snapshot_of(store, layer) for layer in config.diff_ids)


def size(store: Store, config: ImageConfig) -> int:
    """Return the size in bytes of an image's layers as uncompressed tars."""
    return sum(tar_size(store, layer) for layer in config.diff_ids)


def tar_size(store: Store, layer: DiffId) -> int:
    """Return the bytes of a layer as an uncompressed tar, 0 if it is not unpacked."""
    snapshot = store.index.unpacked(layer)
    return layer_tar(store, snapshot).size if snapshot is not None else 0


def put_config(store: Store, config: ImageConfig) -> Digest:
    """Store a config; the digest is the image's ID."""
    try:
        return store.put_blob(config.to_bytes())
    except OSError as error:
        raise CacheError(f"storing an image config: {error.strerror}") from None


def from_root(store: Store, layer: DiffId, source: str) -> Digest:
    """Store an image of one layer and an empty config, as ``docker import`` does."""
    config = scratch(host())
    config = ImageConfig(config.platform, {}, (History(f"imported from {source}"),), (layer,))
    return put_config(store, config)
