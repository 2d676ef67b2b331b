"""Names under which digests of the files of stages are remembered: in one store, and in all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from builder.images.lazy_layers import is_packed
from cache.digest import SnapshotId
from cache.keys import derive
from cache.layer.blobs import layer_tar
from cache.store import Store
from grammar.structs import struct


@struct(eq=False)
class Alias:
    """How files are taken, on top of which steps, and from which layers."""

    kind: str
    fields: Mapping[str, object]
    keys: tuple[str, ...]
    layers: tuple[str, ...]

    def local(self) -> str:
        """The name in this store, which costs nothing."""
        return derive(self.kind, self.fields, [*self.keys, *self.layers])

    def portable(self, store: Store, pack: bool = False) -> str:
        """The name in all stores, by the diff IDs of the layers; "" where one is not known.

        With *pack* they are found out.
        """
        layers = [portable(store, layer, pack) for layer in self.layers]
        return derive(self.kind, self.fields, [*self.keys, *layers]) if all(layers) else ""


def chained(layers: Sequence[str]) -> str:
    """One name for the layers of the RUNs below a step, bottom first: of one its own, "" for none."""
    if len(layers) < 2:
        return "".join(layers)
    return "sha256:" + hashlib.sha256("\n".join(layers).encode()).hexdigest()


def portable_chain(store: Store, layers: Sequence[str], known: dict[str, str]) -> str:
    """The same by their diff IDs, which are found out; *known* keeps them from call to call."""
    for layer in layers:
        if layer not in known:
            known[layer] = portable(store, layer, pack=True)
    return chained([known[layer] for layer in layers])


def portable(store: Store, layer: str, pack: bool) -> str:
    """The diff ID of a layer of a stack, "" where it is not known; with *pack* it is found out."""
    if not layer or is_packed(layer):
        return layer
    known = store.index.layer_tar(SnapshotId(layer))
    if known is None and pack:
        known = layer_tar(store, SnapshotId(layer))
    return known.diff_id if known is not None else ""
