"""Which repositories are known to have a blob: a registry can mount it from one into another."""

from __future__ import annotations

import json

from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference

_MOST_SOURCES = 8


def remember_source(store: Store, reference: Reference, digest: Digest) -> None:
    """Keep in mind that a repository has a blob: another of the registry can have it mounted."""
    known = [name for name in _sources(store, reference.registry, digest) if name != reference.repository]
    names = [reference.repository, *known][:_MOST_SOURCES]
    store.index.set_memo(_memo(reference.registry, digest), json.dumps(names).encode())


def another_source(store: Store, reference: Reference, digest: Digest) -> str:
    """Another repository of the same registry that is known to have the blob, "" without one."""
    names = _sources(store, reference.registry, digest)
    return next((name for name in names if name != reference.repository), "")


def _sources(store: Store, registry: str, digest: Digest) -> list[str]:
    data = store.index.memo(_memo(registry, digest))
    return [str(name) for name in json.loads(data)] if data else []


def _memo(registry: str, digest: Digest) -> str:
    return f"blob: {registry} {digest}"
