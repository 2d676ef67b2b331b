"""Keys under which digests of files of stages are remembered: in one store, and in shared caches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cache.digest import DiffId, Layer
from cache.keys import derive
from cache.layer.blobs import layer_tar
from cache.store import Store
from grammar.structs import struct


@struct(eq=False)
class ContentKey:
    """What a digest of files depends on: how they are selected, from which steps and layers."""

    kind: str
    fields: Mapping[str, object]
    keys: tuple[str, ...]
    layers: tuple[Layer, ...]

    def local(self) -> str:
        """Return the name in this store, which costs nothing."""
        return derive(self.kind, self.fields, [*self.keys, *self.layers])

    def portable(self, store: Store) -> str | None:
        """Return the name in all stores, by the diff IDs of the layers; None if one was never packed."""
        known = [portable(store, layer) for layer in self.layers]
        layers = [layer for layer in known if layer is not None]
        return derive(self.kind, self.fields, [*self.keys, *layers]) if len(layers) == len(known) else None

    def packed(self, store: Store) -> str:
        """Return the name in all stores, packing layers that never were. Raises CacheError."""
        return derive(self.kind, self.fields, [*self.keys, *(packed(store, layer) for layer in self.layers)])


def chained(layers: Sequence[str]) -> str:
    """Return one name for the layers of the RUNs below a step, bottom first: of one its own, "" of none."""
    if len(layers) < 2:
        return "".join(layers)
    return "sha256:" + hashlib.sha256("\n".join(layers).encode()).hexdigest()


def portable_chain(store: Store, layers: Sequence[Layer], known: dict[Layer, DiffId]) -> str:
    """Return ``chained`` of the diff IDs of *layers*, packing those that never were.

    *known* keeps them from call to call.
    """
    for layer in layers:
        if layer not in known:
            known[layer] = packed(store, layer)
    return chained([known[layer] for layer in layers])


def portable(store: Store, layer: Layer) -> DiffId | None:
    """Return the diff ID of a layer of a stack, None if it was never packed."""
    if isinstance(layer, DiffId):
        return layer
    known = store.index.layer_tar(layer)
    return known.diff_id if known is not None else None


def packed(store: Store, layer: Layer) -> DiffId:
    """Return the diff ID of a layer of a stack, packing it if it never was. Raises CacheError."""
    return layer if isinstance(layer, DiffId) else layer_tar(store, layer).diff_id
