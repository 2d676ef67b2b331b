"""Push an image: its layers side by side, then its config, its manifest last."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from builder.events import Meter, Sink
from builder.export.image import Formed
from builder.registry.client import Registry
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference

_AT_ONCE = 4
_MOST_SOURCES = 8


def push(store: Store, formed: Formed, reference: Reference, sink: Sink, insecure: frozenset[str]) -> None:
    """Push an image as *reference*.

    Blobs that the repository has are not sent, those that another repository of the registry is
    known to have are mounted from there. The name means the image only when all of it is there.
    Raises BuildError or CacheError.
    """
    blobs = list(dict.fromkeys((item.digest, item.size) for item in (*formed.layers, formed.config)))
    meter = Meter(f"pushing {reference.familiar}", sum(size for _, size in blobs), sink)
    with Registry(reference.registry, insecure) as registry:

        def send(item: tuple[Digest, int]) -> None:
            digest, size = item
            descriptor = Descriptor("", digest, size)
            if registry.has_blob(reference.repository, descriptor):
                meter.add(size)
            else:
                source = _source(store, reference, digest)
                registry.push_blob(
                    reference.repository, descriptor, store.blob_path(digest), source, meter.add
                )
            remember_source(store, reference, digest)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for job in [pool.submit(send, item) for item in blobs]:
                job.result()
        meter.finish()
        name = reference.tag or reference.digest or formed.top.digest
        registry.push_manifest(reference.repository, name, formed.top.media_type, formed.body)


def remember_source(store: Store, reference: Reference, digest: Digest) -> None:
    """Keep in mind that a repository has a blob: another of the registry can have it mounted."""
    known = [name for name in _sources(store, reference.registry, digest) if name != reference.repository]
    names = [reference.repository, *known][:_MOST_SOURCES]
    store.index.set_memo(_memo(reference.registry, digest), json.dumps(names).encode())


def _source(store: Store, reference: Reference, digest: Digest) -> str:
    """Another repository of the same registry that is known to have the blob, "" without one."""
    names = _sources(store, reference.registry, digest)
    return next((name for name in names if name != reference.repository), "")


def _sources(store: Store, registry: str, digest: Digest) -> list[str]:
    data = store.index.memo(_memo(registry, digest))
    return [str(name) for name in json.loads(data)] if data else []


def _memo(registry: str, digest: Digest) -> str:
    return f"blob: {registry} {digest}"
