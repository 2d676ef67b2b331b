"""An OCI image layout in a directory (image-spec image-layout.md), which several builds may write at once.

Each file appears whole. index.json changes under a lock on the directory itself, so no lock file is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from builder.errors import BuildError
from builder.oci.errors import ImageError
from builder.oci.manifest import Entry, blob_path, identity, index_bytes, parse_index
from builder.oci.model import to_json
from builder.support.json_types import JsonObject
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of
from cache.fs import atomic_file
from cache.kernel import read_regular
from grammar.structs import struct

VERSION_FILE, VERSION = "oci-layout", to_json({"imageLayoutVersion": "1.0.0"})
INDEX_FILE = "index.json"
_INDEX_LIMIT = 4 << 20
_CHUNK = 1 << 20


@struct
class Layout:
    """The layout in the directory *path*, which is made when something is written."""

    path: str

    @property
    def name(self) -> str:
        """What messages call the layout."""
        return self.path

    def entries(self) -> list[Entry]:
        """Return the entries of index.json; none where there is no such file. Raises BuildError."""
        path = os.path.join(self.path, INDEX_FILE)
        try:
            data = read_regular(path, _INDEX_LIMIT)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BuildError(f"reading {path}: {error.strerror}") from None
        try:
            return list(parse_index(data, path).entries)
        except ImageError as error:
            raise BuildError(
                f"{path} is not the index of an image layout: {error.message}", "use another directory"
            ) from None

    def blob_path(self, digest: Digest) -> str:
        """Return the path of the file that holds a blob."""
        return os.path.join(self.path, blob_path(digest))

    def has(self, digest: Digest, size: int) -> bool:
        """Return whether a blob of that name and *size* in bytes exists. Its content is not verified."""
        path = self.blob_path(digest)
        return os.path.isfile(path) and os.path.getsize(path) == size

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        """Write a blob to *sink*, verified by size and digest (see ``BlobSource``). Raises BuildError."""
        path = self.blob_path(descriptor.digest)
        sha, left = hashlib.sha256(), descriptor.size
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                while left >= 0 and (data := file.read(_CHUNK)):
                    left -= len(data)
                    sha.update(data)
                    sink.write(data)
                    progress(len(data))
        except OSError as error:
            raise BuildError(f"reading {path}: {error.strerror}") from None
        if left or sha.hexdigest() != hex_of(descriptor.digest):
            raise BuildError(f"{path} is damaged: its content does not match its name")

    def put(self, digest: Digest, source: str, progress: Callable[[int], None]) -> None:
        """Copy the file *source* as the blob *digest*. Raises BuildError."""
        with self._writing(self.blob_path(digest)) as target, open(source, "rb") as reading:
            while data := reading.read(_CHUNK):
                target.write(data)
                progress(len(data))

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Write *data* as a blob and return its descriptor. Raises BuildError."""
        digest = digest_of(data)
        with self._writing(self.blob_path(digest)) as target:
            target.write(data)
        return Descriptor(media_type, digest, len(data))

    def add_entries(self, entries: Sequence[JsonObject]) -> None:
        """Add *entries* to index.json. They replace those of the same names. Raises BuildError."""
        new = list(map(Entry, entries))
        replaced = {identity(entry) for entry in new}
        with self._locked():
            kept = [entry for entry in self.entries() if identity(entry) not in replaced and entry not in new]
            index = index_bytes([entry.value for entry in (*kept, *new)])
            for name, data in ((VERSION_FILE, VERSION), (INDEX_FILE, index)):
                with self._writing(os.path.join(self.path, name)) as target:
                    target.write(data)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the index, where the file system can lock directories."""
        try:
            os.makedirs(self.path, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"writing to {self.path}: {error.strerror}") from None
        try:
            with contextlib.suppress(OSError):  # NFS locks only files that are open for writing
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _writing(self, path: str) -> Iterator[BinaryIO]:
        """Yield a file that replaces *path*, durably, once it is written whole."""
        temporary = f"{path}.pybuild-{os.urandom(4).hex()}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with atomic_file(path, temporary, 0o666) as file:
                yield file
        except OSError as error:
            raise BuildError(f"writing {path}: {error.strerror}") from None
