"""Push an image: its layers side by side, then its config, its manifest last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.errors import OutputError
from builder.events import Meter, Notice, Sink
from builder.export.exporters import Export
from builder.export.image import ExportedImage, exported_image, pack_all
from builder.oci import media_types
from builder.registry.repository import open_for_push
from builder.registry.sources import another_source, remember_source
from builder.request import ClientOptions
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference, parse_reference
from grammar.structs import replace

if TYPE_CHECKING:
    from builder.attest.statement import Artifact

_AT_ONCE = 4


def export_to_registry(export: Export) -> Descriptor:
    """Push the image under each name of an export. Raises BuildError or CacheError."""
    if not export.names:
        raise OutputError("there is no name to push the image under", "give one with -t, or with name=")
    packed = pack_all(export)
    artifacts = export.attest(packed)
    image = exported_image(export.store, packed, export.output)
    for name in export.names:
        reference = parse_reference(name)
        options = export.client.trusting(reference.registry) if export.output.insecure else export.client
        if export.output.by_digest:
            reference = replace(reference, tag="", digest=image.descriptor.digest)
        push(export.store, image, reference, export.sink, options, artifacts)
        export.sink(Notice(f"pushed {replace(reference, digest='')}@{image.descriptor.digest}"))
    return image.descriptor


def push(
    store: Store,
    image: ExportedImage,
    reference: Reference,
    sink: Sink,
    options: ClientOptions,
    artifacts: Sequence[Artifact] = (),
) -> None:
    """Push an image, or an index of several, and its attestations as *reference*.

    Blobs that the repository has are not sent; those that another repository of the registry is known to
    have are mounted from there. The manifest that gets the name is pushed last.

    Raises BuildError or CacheError.
    """
    blobs = image.layer_blobs()
    meter = Meter(f"pushing {reference.familiar}", sum(blobs.values()), sink)
    with open_for_push(reference, options) as repository:

        def send(item: tuple[Digest, int]) -> None:
            digest, size = item
            descriptor = Descriptor(media_types.OCTETS, digest, size)
            if repository.has_blob(descriptor):
                meter.add(size)
            else:
                source = another_source(store, reference, digest)
                repository.push_blob(descriptor, store.blob_path(digest), meter.add, source)
            remember_source(store, reference, digest)

        each(send, list(blobs.items()), _AT_ONCE)
        meter.finish()
        if len(image.images) > 1:
            for packed in image.images:
                at = packed.descriptor
                repository.push_manifest(at.digest, at.media_type, packed.manifest)
        if artifacts:
            from builder.attest.publish import publish  # few builds have attestations

            publish(store, artifacts, repository)
        name = reference.tag or reference.digest or image.descriptor.digest
        repository.push_manifest(name, image.descriptor.media_type, image.content)
