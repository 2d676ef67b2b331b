"""Remembers which repositories have a blob: a registry can mount it from one into another."""

from __future__ import annotations

from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference

_MOST_SOURCES = 8


def remember_source(store: Store, reference: Reference, digest: Digest) -> None:
    """Remember that a repository has a blob, so that it can be mounted into another one."""
    known = [name for name in _sources(store, reference.registry, digest) if name != reference.repository]
    names = [reference.repository, *known][:_MOST_SOURCES]
    store.memos.set_repositories(reference.registry, digest, names)


def another_source(store: Store, reference: Reference, digest: Digest) -> str | None:
    """Return another repository of the same registry that is known to have the blob, if there is one."""
    names = _sources(store, reference.registry, digest)
    return next((name for name in names if name != reference.repository), None)


def _sources(store: Store, registry: str, digest: Digest) -> list[str]:
    return store.memos.repositories(registry, digest)
