"""Load an image archive into the store: OCI layout tars and ``docker save`` tars.

Archives are untrusted: only members with names of the formats are read, every blob is verified against
its digest, and layers are verified against the config's diff IDs when they are unpacked.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator, Sequence

from builder.errors import BuildError, UsageError
from builder.images.local import config_of, reference, remember_platform, rename
from builder.oci.errors import ImageError, MissingBlob
from builder.oci.layout import INDEX_FILE
from builder.oci.manifest import Entry, Index, Manifest, blob_path, parse_index, parse_manifest
from builder.oci.model import ImageConfig, Platform, host, parse_config
from builder.oci.walk import image_manifests
from builder.support.json_strict import loads
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of
from cache.errors import ArchiveError, CorruptError
from cache.kernel import read_regular, write_all
from cache.layer import compression as comp
from cache.layer.blobs import add_blob
from cache.layer.tar_reader import Read, TarReader
from cache.store import Store, write_error
from grammar.reference import Reference

_SMALL = 16 << 20
_MAX_MEMBERS = 10_000
_MAX_DEPTH = 4


def load(store: Store, read: Read) -> list[str]:
    """Load every image of an archive. Return the new names, and image IDs for unnamed images.

    Of images for several platforms, a name means that for this machine, else the first. Raises BuildError or
    CacheError; then nothing was tagged.
    """
    folder = store.temporary()
    os.mkdir(folder, 0o700)
    archive = _Archive(store, folder)
    archive.read(comp.detecting(read))
    return _name_all(
        store, archive.docker_images() if "manifest.json" in archive.files else archive.oci_images()
    )


def load_folder(store: Store, folder: str) -> list[str]:
    """Load every image of an OCI image layout in a directory, which is not changed."""
    return _name_all(store, _layout(store, folder).oci_images())


def _name_all(store: Store, images: list[tuple[Digest, list[str]]]) -> list[str]:
    """Tag images of the store. Return the names, and IDs of those that have none."""
    if not images:
        raise ImageError("the archive holds no image")
    for name in dict.fromkeys(name for _, names in images for name in names):
        own = [image for image, names in images if name in names]
        platforms = [config_of(store, image).platform for image in own]
        rename(store, name, own[platforms.index(host())] if host() in platforms else own[0])
        for image, platform in zip(own, platforms, strict=True):
            if platform != host():
                remember_platform(store, reference(name), platform, image)
    return list(dict.fromkeys(name for image, names in images for name in (names or [image])))


def load_layout(store: Store, place: str, platform: Platform) -> Digest:
    """Load the image for *platform* of an OCI image layout, ``directory[:tag|@digest]``, into the store.

    Without a tag it is the one tagged latest, or the only one. Raises BuildError or CacheError.
    """
    folder, at, wanted = place.partition("@")
    tag = ""
    if not at and not os.path.isdir(folder):
        folder, _, tag = folder.rpartition(":")
    if not os.path.isdir(folder):
        raise ImageError(f"there is no OCI layout at {place}")
    return _layout(store, folder).oci_image(f"the OCI layout {folder}", tag, wanted, platform)


def _layout(store: Store, folder: str) -> _Archive:
    layout = _Archive(store, "")
    for name in ("index.json", *_blobs(folder)):
        layout.files[name] = os.path.join(folder, name)
    return layout


def _blobs(folder: str) -> list[str]:
    try:
        return [f"blobs/sha256/{name}" for name in os.listdir(os.path.join(folder, "blobs/sha256"))]
    except OSError as error:
        raise ImageError(f"{folder} is not an OCI layout: {error.strerror}") from None


def _is_meant(entry: Entry, tag: str, wanted: str) -> bool:
    return entry.stated_digest == wanted if wanted else entry.tag == (tag or "latest")


class _Archive:
    """The members of an archive, in files with numbers as names, and the links between them.

    Files in ``folder`` are temporary and are linked into the store; those of a layout are copied.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self.files: dict[str, str] = {}
        self._links: dict[str, str] = {}

    def read(self, stream: Read) -> None:
        reader = TarReader(stream)
        for count, member in enumerate(reader):
            if count > _MAX_MEMBERS:
                raise ArchiveError("the archive has too many members for an image")
            name = posixpath.normpath(os.fsdecode(member.name)).lstrip("/")
            if member.kind in ("l", "h"):
                target = os.fsdecode(member.link)
                base = posixpath.dirname(name) if member.kind == "l" else ""
                self._links[name] = posixpath.normpath(posixpath.join(base, target)).lstrip("/")
            elif member.kind == "f":
                path = os.path.join(self._folder, str(count))
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    for data in reader.chunks():
                        _write(file, data)
                finally:
                    os.close(file)
                self.files[name] = path

    def _path(self, name: str) -> str:
        for _ in range(_MAX_DEPTH):
            if name in self.files:
                return self.files[name]
            name = self._links.get(name, name)
        raise MissingBlob(f"the archive lacks {name!r}, which its manifest names")

    def _small(self, name: str) -> bytes:
        try:
            data = read_regular(self._path(name), _SMALL)
        except OSError as error:
            raise ImageError(f"reading {name!r} of the image: {error.strerror}") from None
        if len(data) > _SMALL:
            raise ImageError(f"{name!r} in the archive is larger than {_SMALL} bytes")
        return data

    # -- docker ----------------------------------------------------------------------------

    def docker_images(self) -> list[tuple[Digest, list[str]]]:
        items = loads(self._small("manifest.json"), "manifest.json", _SMALL)
        if not isinstance(items, list):
            raise ImageError("manifest.json in the archive is not a list")
        out = []
        lacking: BuildError | None = None
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("Layers"), list):
                raise ImageError("manifest.json in the archive does not describe an image")
            try:
                data = self._small(_normal(item.get("Config")))
                paths = [self._path(_normal(name)) for name in item["Layers"]]
            except MissingBlob as error:
                lacking = error
                continue
            tags = item.get("RepoTags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise ImageError("manifest.json in the archive does not name its images as a list of texts")
            names = [str(name) for name in map(_reference, tags) if not name.digest]
            out.append((self._add(data, [(path, None) for path in paths]), names))
        if lacking is not None and not out:
            raise lacking
        return out

    # -- OCI -------------------------------------------------------------------------------

    def oci_images(self) -> list[tuple[Digest, list[str]]]:
        """Store all images; those that the archive lacks are left out unless it lacks all."""
        if INDEX_FILE not in self.files:
            raise ImageError(
                "the archive has neither index.json nor manifest.json: it is not an image archive"
            )
        found: dict[Digest, list[str]] = {}
        missing: list[MissingBlob] = []
        for entry in self._entries():
            for manifest in self._manifests(entry, missing):
                try:
                    image = self._from_manifest(manifest)
                except MissingBlob as error:  # of an index some platforms may have been left out
                    missing.append(error)
                    continue
                names = found.setdefault(image, [])
                if name := _name(entry):
                    names.append(name)
        if missing and not found:
            raise missing[-1]
        return list(found.items())

    def oci_image(self, what: str, tag: str, wanted: str, platform: Platform) -> Digest:
        """Store the image that has the *tag*, or the digest *wanted*; errors call the archive *what*."""
        images = self._entries()
        entries = [entry for entry in images if _is_meant(entry, tag, wanted)]
        if not entries and not tag and not wanted and len(images) == 1:
            entries = images
        if not entries:
            raise ImageError(f"{what} has no image {tag or wanted or 'called latest'}")
        top = self.manifest(entries[0].descriptor)
        for manifest in image_manifests(top, self, platform):
            return self._from_manifest(manifest)
        raise ImageError(f"{what} has no image for {platform}", code="E-PLATFORM")

    def _entries(self) -> list[Entry]:
        """Return the entries of index.json that are images."""
        index = parse_index(self._small(INDEX_FILE), f"{INDEX_FILE} in the archive")
        return [entry for entry in index.entries if entry.is_image]

    def _manifests(self, entry: Entry, missing: list[MissingBlob]) -> Iterator[Manifest]:
        """Yield the manifests that *entry* leads to. Blobs that are absent go to *missing*."""

        def failed(error: BuildError) -> None:
            if not isinstance(error, MissingBlob):
                raise error
            missing.append(error)

        try:
            top = self.manifest(entry.descriptor)
        except MissingBlob as error:
            missing.append(error)
            return
        yield from image_manifests(top, self, failed=failed)

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        """Return the manifest or index of a descriptor (see ``ManifestSource``)."""
        return parse_manifest(self._blob(descriptor), "a manifest in the archive")

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """Return the config of a descriptor (see ``ManifestSource``)."""
        return parse_config(self._blob(descriptor), "the config in the archive")

    def _blob(self, wanted: Descriptor) -> bytes:
        data = self._small(blob_path(wanted.digest))
        if len(data) != wanted.size or digest_of(data) != wanted.digest:
            raise _mismatch(wanted)
        return data

    def _from_manifest(self, manifest: Manifest) -> Digest:
        layers = [(self._path(blob_path(layer.digest)), layer) for layer in manifest.layers()]
        return self._add(self._blob(manifest.config()), layers)

    # -- both ------------------------------------------------------------------------------

    def _add(self, config: bytes, layers: Sequence[tuple[str, Descriptor | None]]) -> Digest:
        """Store a config and its layers; where no descriptor says what a layer is, its bytes tell."""
        parsed = parse_config(config, "the config in the archive")
        if len(parsed.diff_ids) != len(layers):
            raise ImageError(
                f"the config in the archive names {len(parsed.diff_ids)} layers, its manifest {len(layers)}"
            )
        for (path, stated), expected in zip(layers, parsed.diff_ids, strict=True):
            if not self._store.index.unpacked(expected):
                add_blob(self._store, self._adopt(path, stated), expected)
        return self._store.put_blob(config)

    def _adopt(self, path: str, stated: Descriptor | None) -> Descriptor:
        """Store the file of a layer under its digest."""
        sha = hashlib.sha256()
        copy = self._store.temporary()
        if self._folder:
            os.link(path, copy)
        else:
            _copy_blob(path, copy, stated)
        with open(copy, "rb") as file:
            start = file.read(512)
            sha.update(start)
            while data := file.read(1 << 20):
                sha.update(data)
            size = file.tell()
            os.fsync(file.fileno())
        value = Digest("sha256:" + sha.hexdigest())
        if stated is not None and (stated.digest, stated.size) != (value, size):
            raise _mismatch(stated)
        if stated is not None:
            comp.compression_of(stated.media_type)  # has to be that of a layer
        kind = comp.detect(start)
        final = self._store.blob_path(value)
        if os.path.exists(final):
            os.unlink(copy)
        else:
            self._store.publish(copy, final)
        return Descriptor(comp.media_type(kind if kind in comp.LEVELS else comp.NONE), value, size)


def _copy_blob(path: str, copy: str, stated: Descriptor | None) -> None:
    """Copy a blob of a layout after checking its size. Raises BuildError unless it is a regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as source, open(copy, "xb") as target:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{path} is not a regular file")
        if stated is not None and found.st_size != stated.size:
            raise _mismatch(stated)
        shutil.copyfileobj(source, target, 1 << 20)


def _normal(name: object) -> str:
    return posixpath.normpath(str(name)).lstrip("/")


def _mismatch(wanted: Descriptor) -> CorruptError:
    return CorruptError(f"{wanted.digest} in the archive does not match its digest and size")


def _write(fd: int, data: bytes) -> None:
    try:
        write_all(fd, data)
    except OSError as error:
        raise write_error(error, "the members of the archive") from None


def _reference(name: str) -> Reference:
    try:
        return reference(name)
    except UsageError as error:  # nobody typed it
        raise ImageError(f"the archive names an image so: {error.message}") from None


def _name(entry: Entry) -> str | None:
    """Return the canonical name that an index gives an image. A bare tag is no name."""
    name = entry.image_name
    if name is None:
        name = entry.tag
        if name is None or (":" not in name and "/" not in name):
            return None
    found = _reference(name)
    return None if found.digest not in ("", entry.stated_digest) else str(found)
