"""Memos: facts that a store remembers besides steps and layers, each kind with its own methods.

Every memo is a value that can be found out again, so losing one costs time only. A memo of something
that this program's code derived is kept under the digest of that code (*edition*), so that other code
does not believe it. The table lists the kinds; the key of each begins with its name.

    kind         key                          value
    ast          edition, text of the file    the parsed Dockerfile (pickle)
    build        edition, command line        what a build read and concluded (marshal)
    clamped      epoch, diff ID               the layer without later times: its diff ID
    commit       cache key of a git fetch     the commit that was checked out
    content      cache key of a selection     the digest of the files that it selects
    context      cache key of a context       the snapshot that holds its files
    copy         cache key of a place         the snapshot of the last COPY there
    fetched      cache key of a URL           its snapshot, and validators of HTTP (marshal)
    git          cache key of a git fetch     the snapshot that holds its files
    implied      hash of a stack              the snapshot of directories that its top layer implies
    manifest     reference, image ID          the digest that the registry had for the reference
    platform     platform, reference          the image that was pulled for the platform
    probe        name, boot, device, user     nothing: the probe succeeded
    remote       platform, reference          an image whose layers stay in its registry (marshal)
    repositories registry, digest             repositories that have the blob (marshal)
"""

import hashlib
import marshal

from cache.digest import DiffId, Digest, ImageId, SnapshotId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cache.index import Index


class RemoteImage:
    """An image whose layers stay in its registry: its id, and the descriptors of its layers as JSON."""

    __slots__ = ("id", "layers")

    def __init__(self, image: ImageId, layers: "list[dict[str, object]]") -> None:
        self.id = image
        self.layers = layers


class Memos:
    """The memos of one store."""

    def __init__(self, index: "Index") -> None:
        self._index = index

    def _text(self, kind: str, key: str) -> str | None:
        value = self._index.memo(f"{kind}:{key}")
        return value.decode() if value is not None else None

    def _set_text(self, kind: str, key: str, value: str) -> None:
        self._index.set_memo(f"{kind}:{key}", value.encode())

    def _value(self, kind: str, key: str) -> "Any":  # what marshal reads; each caller says its type
        found = self._index.memo(f"{kind}:{key}")
        try:
            return marshal.loads(found) if found is not None else None
        except (ValueError, EOFError, TypeError):
            return None

    def _set_value(
        self, kind: str, key: str, value: "dict[str, str] | list[str] | tuple[str, list[dict[str, object]]]"
    ) -> None:
        self._index.set_memo(f"{kind}:{key}", marshal.dumps(value))

    def _snapshot(self, kind: str, key: str) -> SnapshotId | None:
        """Return the snapshot that a memo names, if it is still usable."""
        snapshot = SnapshotId(self._text(kind, key) or "")
        return snapshot if snapshot and self._index.usable(snapshot) else None

    # -- what our code derived ---------------------------------------------------------------

    def syntax_tree(self, edition: str, text: str) -> bytes | None:
        """Return the pickled tree of a Dockerfile with this *text*."""
        return self._index.memo(_syntax_key(edition, text))

    def set_syntax_tree(self, edition: str, text: str, pickled: bytes) -> None:
        """Remember the tree of a Dockerfile. It must hold no credentials."""
        self._index.set_memo(_syntax_key(edition, text), pickled)

    def build(self, key: str) -> bytes | None:
        """Return what the build with this *key* read and concluded; builder.replay.play makes both."""
        return self._index.memo(f"build:{key}")

    def set_build(self, key: str, marshalled: bytes) -> None:
        """Remember a build for builder.replay."""
        self._index.set_memo(f"build:{key}", marshalled)

    # -- images and registries -----------------------------------------------------------------

    def platform_image(self, platform: str, reference: str) -> ImageId | None:
        """Return the image that *reference* means for a platform other than this machine's."""
        found = self._text("platform", f"{platform} {reference}")
        return ImageId(found) if found else None

    def set_platform_image(self, platform: str, reference: str, image: ImageId) -> None:
        """Remember which image *reference* means for *platform*."""
        self._set_text("platform", f"{platform} {reference}", image)

    def forget_platform_images(self, reference: str) -> None:
        """Forget what *reference* meant for each platform."""
        self._index.forget_memos("platform:", f" {reference}")

    def pulled_digest(self, reference: str, image: str) -> Digest | None:
        """Return the digest that *reference* had in its registry when it was *image*."""
        found = self._text("manifest", f"{reference} {image}")
        return Digest(found) if found else None

    def set_pulled_digest(self, reference: str, image: str, digest: Digest) -> None:
        """Remember the digest of the manifest, or index, that *reference* named."""
        self._set_text("manifest", f"{reference} {image}", digest)

    def remote_image(self, platform: str, reference: str) -> "RemoteImage | None":
        """Return the image that *reference* meant, whose layers stay in its registry."""
        found = self._value("remote", f"{platform} {reference}")
        return RemoteImage(ImageId(found[0]), found[1]) if found is not None else None

    def set_remote_image(self, platform: str, reference: str, image: "RemoteImage") -> None:
        """Remember an image whose layers stay in its registry, so that its name keeps its meaning."""
        self._set_value("remote", f"{platform} {reference}", (image.id, image.layers))

    def repositories(self, registry: str, blob: Digest) -> list[str]:
        """Return repositories of *registry* that have *blob*, the one seen last first."""
        found: list[str] | None = self._value("repositories", f"{registry} {blob}")
        return found or []

    def set_repositories(self, registry: str, blob: Digest, names: list[str]) -> None:
        """Remember which repositories have *blob*."""
        self._set_value("repositories", f"{registry} {blob}", names)

    # -- files that were fetched or copied -----------------------------------------------------

    def fetched_url(self, key: str) -> "dict[str, str] | None":
        """Return what was stored of a URL: its snapshot, its digest, and HTTP's validators."""
        found: dict[str, str] | None = self._value("fetched", key)
        return found

    def set_fetched_url(self, key: str, described: "dict[str, str]") -> None:
        """Remember a file that was fetched."""
        self._set_value("fetched", key, described)

    def commit(self, key: str) -> str | None:
        """Return the commit whose files a git fetch with this *key* gave."""
        return self._text("commit", key) or None

    def set_commit(self, key: str, commit: str) -> None:
        """Remember the commit of a git fetch."""
        self._set_text("commit", key, commit)

    def checkout(self, key: str) -> SnapshotId | None:
        """Return the snapshot of a git fetch, if it is usable."""
        return self._snapshot("git", key)

    def set_checkout(self, key: str, snapshot: SnapshotId) -> None:
        """Remember the snapshot of a git fetch."""
        self._set_text("git", key, snapshot)

    def context(self, key: str) -> SnapshotId | None:
        """Return the snapshot of a remote build context, if it is usable."""
        return self._snapshot("context", key)

    def set_context(self, key: str, snapshot: SnapshotId) -> None:
        """Remember the snapshot of a remote build context."""
        self._set_text("context", key, snapshot)

    def last_copy(self, key: str) -> SnapshotId | None:
        """Return the snapshot of the last COPY to a place, if it is usable."""
        return self._snapshot("copy", key)

    def set_last_copy(self, key: str, snapshot: SnapshotId) -> None:
        """Remember the snapshot of a COPY; the next one to the same place links its equal files."""
        self._set_text("copy", key, snapshot)

    def content(self, key: str) -> str | None:
        """Return the digest of the files that a selection from stages selects."""
        return self._text("content", key) or None

    def set_content(self, key: str, digest: str) -> None:
        """Remember the digest of a selection from stages."""
        self._set_text("content", key, digest)

    # -- layers ----------------------------------------------------------------------------------

    def clamped_layer(self, layer: DiffId, epoch: int) -> DiffId | None:
        """Return the layer that *layer* became without times later than *epoch* (seconds)."""
        found = self._text("clamped", f"{epoch} {layer}")
        return DiffId(found) if found else None

    def set_clamped_layer(self, layer: DiffId, epoch: int, made: DiffId) -> None:
        """Remember what a layer became without later times."""
        self._set_text("clamped", f"{epoch} {layer}", made)

    def implied_directories(self, key: str) -> tuple[SnapshotId, ...] | None:
        """Return the snapshots, none or one, of the directories that the top of a stack implies.

        None where that is not known, or the snapshot is not usable.
        """
        if self._text("implied", key) == "":
            return ()
        snapshot = self._snapshot("implied", key)
        return (snapshot,) if snapshot is not None else None

    def set_implied_directories(self, key: str, snapshots: tuple[SnapshotId, ...]) -> None:
        """Remember the snapshots, none or one, of the directories that the top of a stack implies."""
        self._set_text("implied", key, "".join(snapshots))

    # -- probes ----------------------------------------------------------------------------------

    def probe_succeeded(self, name: str, user: str, device: int) -> bool:
        """Return whether a probe of the store's file system succeeded in this boot, for this user."""
        return self._text("probe", f"{name} {self._index.boot} {device} {user}") is not None

    def set_probe_succeeded(self, name: str, user: str, device: int) -> None:
        """Remember that a probe succeeded. Failures are never remembered: they may be mended."""
        self._set_text("probe", f"{name} {self._index.boot} {device} {user}", "")


def _syntax_key(edition: str, text: str) -> str:
    hashed = hashlib.sha256(f"{edition}\0{text}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"ast:{hashed}"
