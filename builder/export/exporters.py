"""The types of outputs. A new type is a module with a writer, and a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from builder.events import Sink
from builder.request import ClientOptions, Output
from cache.descriptor import Descriptor
from cache.store import Store
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.attest.statement import Artifact
    from builder.export.image import PackedImage, StoredImage


@struct
class Export:
    """One output of a build: what is written, how, and where to.

    ``names`` are canonical references. ``images`` are those for each platform. ``attest`` makes the
    attestations that the build was asked for, once the images are packed.
    """

    store: Store
    sink: Sink
    output: Output
    names: tuple[str, ...]
    images: tuple[StoredImage, ...]
    client: ClientOptions
    attest: Callable[[Sequence[PackedImage]], tuple[Artifact, ...]]


@struct
class Exporter:
    """A type of output.

    ``write`` writes one and returns the descriptor of the image or index that it holds, if it holds one.
    ``has_manifest`` is whether it holds a manifest, which can have annotations; ``attested`` whether it can
    hold attestations; ``needs_dest`` whether the option has to say ``dest=``. The output of the highest
    ``precedence`` is the one that IDs and metadata are about; 0 is for files without an image.
    """

    write: Callable[[Export], Descriptor | None]
    has_manifest: bool = False
    attested: bool = False
    needs_dest: bool = False
    precedence: int = 0


# Writers are imported when they are called: most builds need at most one of them.


def _archive(export: Export) -> Descriptor | None:
    from builder.export.archive import export_archive

    return export_archive(export)


def _docker_archive(export: Export) -> Descriptor | None:
    from builder.export.archive import export_docker_archive

    return export_docker_archive(export)


def _registry(export: Export) -> Descriptor | None:
    from builder.export.push import export_to_registry

    return export_to_registry(export)


def _tar(export: Export) -> None:
    from builder.export.root import export_tar

    export_tar(export)


def _directory(export: Export) -> None:
    from builder.export.root import export_directory

    export_directory(export)


def _image(export: Export) -> None:
    """Write nothing: the image is in the store."""


EXPORTERS = {
    "oci": Exporter(_archive, has_manifest=True, attested=True, needs_dest=True, precedence=2),
    "docker": Exporter(_docker_archive, has_manifest=True, precedence=2),
    "tar": Exporter(_tar, needs_dest=True),
    "local": Exporter(_directory, needs_dest=True),
    "registry": Exporter(_registry, has_manifest=True, attested=True, precedence=3),
    "image": Exporter(_image, precedence=1),
}
