"""An OCI image layout in a folder (image-spec image-layout.md), as several builds may write to it at once.

Each file appears whole. What index.json names changes under a lock on the folder itself, so that
nothing of ours is left in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from builder.errors import BuildError
from builder.oci.model import INDEX_TYPE, to_json
from builder.support.json_strict import loads
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of
from cache.kernel import read_regular
from grammar.structs import struct

_SMALL = 4 << 20
_CHUNK = 1 << 20
_REF_NAME = "org.opencontainers.image.ref.name"


@struct
class Layout:
    """The layout in the folder *path*, which need not be there before something is written."""

    path: str

    def entries(self) -> list[dict[str, Any]]:
        """The descriptors that index.json names, none where there is no index. Raises BuildError."""
        path = os.path.join(self.path, "index.json")
        try:
            data = read_regular(path, _SMALL)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BuildError(f"reading {path}: {error.strerror}") from None
        value = loads(data, path, _SMALL)
        entries = value.get("manifests") if isinstance(value, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BuildError(f"{path} is not the index of an image layout", "use another folder")
        return entries

    def blob_path(self, value: Digest) -> str:
        return os.path.join(self.path, "blobs", "sha256", hex_of(value))

    def has(self, value: Digest, size: int) -> bool:
        """Whether a blob of that name and *size* in bytes is there; its content is not looked at."""
        path = self.blob_path(value)
        return os.path.isfile(path) and os.path.getsize(path) == size

    def put(self, value: Digest, source: str, progress: Callable[[int], None]) -> None:
        """Copy the file *source* in as the blob *value*. Raises BuildError."""
        with self._writing(self.blob_path(value)) as target, open(source, "rb") as reading:
            while data := reading.read(_CHUNK):
                target.write(data)
                progress(len(data))

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Write *data* as a blob. Raises BuildError."""
        value = digest_of(data)
        with self._writing(self.blob_path(value)) as target:
            target.write(data)
        return Descriptor(media_type, value, len(data))

    def name(self, entries: list[dict[str, Any]]) -> None:
        """Have index.json name *entries*, in place of those with their names. Raises BuildError."""
        names = {_known_as(entry) for entry in entries}
        with self._locked():
            kept = [e for e in self.entries() if _known_as(e) not in names and e not in entries]
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*kept, *entries]}
            for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
                with self._writing(os.path.join(self.path, name)) as target:
                    target.write(to_json(value))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Have this folder's index to ourselves, where its file system knows locks of folders."""
        try:
            os.makedirs(self.path, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"writing to {self.path}: {error.strerror}") from None
        try:
            with contextlib.suppress(OSError):  # NFS wants a file that is open for writing
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _writing(self, final: str) -> Iterator[BinaryIO]:
        """A file that gets the name *final* when it is written, and is durable by then."""
        temporary = f"{final}.pybuild-{os.urandom(4).hex()}"
        try:
            os.makedirs(os.path.dirname(final), exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except OSError as error:
            raise BuildError(f"writing {final}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def ref_name(entry: dict[str, Any]) -> str:
    """The name that an index gives an entry, "" for none."""
    marks = entry.get("annotations")
    name = marks.get(_REF_NAME) if isinstance(marks, dict) else None
    return name if isinstance(name, str) else ""


def named(descriptor: Descriptor, name: str) -> dict[str, Any]:
    """An entry of an index: *descriptor* under *name*."""
    return {**descriptor.to_json(), "annotations": {_REF_NAME: name}}


def _known_as(entry: dict[str, Any]) -> object:
    """The name of an entry; one without is known by its digest."""
    return ref_name(entry) or entry.get("digest")
