"""Push an image: its layers side by side, then its config, its manifest last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.events import Meter, Sink
from builder.export.image import Picture
from builder.registry.repository import open_for_push
from builder.registry.sources import another_source, remember_source
from builder.request import ClientOptions
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference

if TYPE_CHECKING:
    from builder.attest.statement import Artifact

_AT_ONCE = 4


def push(
    store: Store,
    shown: Picture,
    reference: Reference,
    sink: Sink,
    options: ClientOptions,
    attached: Sequence[Artifact] = (),
) -> None:
    """Push an image, or an index of several, as *reference*, and what is *attached* to it.

    Blobs that the repository has are not sent, those that another repository of the registry is
    known to have are mounted from there. The name means the image only when all of it is there, and
    what is said of it beside it.
    Raises BuildError or CacheError.
    """
    blobs = shown.blobs()
    meter = Meter(f"pushing {reference.familiar}", sum(blobs.values()), sink)
    with open_for_push(reference, options) as repository:

        def send(item: tuple[Digest, int]) -> None:
            digest, size = item
            descriptor = Descriptor("", digest, size)
            if repository.has_blob(descriptor):
                meter.add(size)
            else:
                source = another_source(store, reference, digest)
                repository.push_blob(descriptor, store.blob_path(digest), meter.add, source)
            remember_source(store, reference, digest)

        each(send, list(blobs.items()), _AT_ONCE)
        meter.finish()
        if len(shown.parts) > 1:
            for part, _platform in shown.parts:
                repository.push_manifest(part.top.digest, part.top.media_type, part.body)
        if attached:
            from builder.attest.publish import publish

            publish(store, attached, repository)
        name = reference.tag or reference.digest or shown.top.digest
        repository.push_manifest(name, shown.top.media_type, shown.body)
