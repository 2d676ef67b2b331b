"""The way in: the registry of an image, with the mirrors that registries.conf puts before it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from builder.registry.client import Fetched, Registry
from builder.registry.config import Endpoint, endpoints, read_tables
from builder.registry.errors import RegistryError
from cache.descriptor import Descriptor
from grammar.reference import Reference

T = TypeVar("T")
_MIRROR_TRIES = 2
_SHOWN = 200  # characters of what a mirror said


def open_registry(reference: Reference, insecure: frozenset[str]) -> Registry:
    """What *reference* is pulled from, as registries.conf has it. Raises Blocked and BuildError."""
    places = endpoints(reference, read_tables(os.environ), insecure)
    (origin, *others) = places[::-1]
    if not others and (origin.registry, origin.repository) == (reference.registry, reference.repository):
        return Registry(reference.registry, insecure | _named(places))
    return Mirrored(reference, places, insecure)


def open_for_push(reference: Reference, insecure: frozenset[str]) -> Registry:
    """What *reference* is pushed to: always the registry in its name, which may be blocked or insecure."""
    places = endpoints(reference, read_tables(os.environ), insecure)
    return Registry(reference.registry, insecure | _named(places[-1:]))


def _named(places: list[Endpoint]) -> frozenset[str]:
    return frozenset(place.registry for place in places if place.insecure)


class Mirrored(Registry):
    """A registry one of whose repositories is pulled from other places: mirrors, and then where it is.

    Each thing is asked for at one place after the other, until one has it. All but the last are given
    up soon. Every place has its own credentials and tokens, and what comes by digest is verified,
    wherever it comes from.
    """

    def __init__(self, reference: Reference, places: list[Endpoint], insecure: frozenset[str]) -> None:
        super().__init__(reference.registry, insecure)
        self._reference = reference
        self._places = [(place.repository, _open(place, last=place is places[-1])) for place in places]

    def close(self) -> None:
        super().close()
        for _repository, registry in self._places:
            registry.close()

    def manifest(self, repository: str, reference: str) -> Fetched:
        if repository != self._reference.repository:
            return super().manifest(repository, reference)
        return self._first(lambda registry, name: registry.manifest(name, reference))

    def blob(
        self, repository: str, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        if repository != self._reference.repository:
            super().blob(repository, descriptor, sink, progress)
        else:
            self._first(lambda registry, name: registry.blob(name, descriptor, sink, progress))

    def _first(self, ask: Callable[[Registry, str], T]) -> T:
        """The first answer; else the last place's error, which names those before it."""
        passed: list[str] = []
        for repository, registry in self._places:
            try:
                return ask(registry, repository)
            except RegistryError as error:
                passed.append(error.message[:_SHOWN])
                if registry is self._places[-1][1]:
                    others = f" (its mirrors: {'; '.join(passed[:-1])})" if passed[:-1] else ""
                    raise type(error)(error.message + others, error.hint) from None
        raise AssertionError("there is always a place")


def _open(place: Endpoint, last: bool) -> Registry:
    insecure = frozenset({place.registry}) if place.insecure else frozenset()
    if last:
        return Registry(place.registry, insecure)
    return Registry(place.registry, insecure, tries=_MIRROR_TRIES)
