"""WORKDIR: make a directory where the image has none."""

from __future__ import annotations

from contextlib import AbstractContextManager

from builder.copy.place import make_dir
from builder.images.lazy_layers import Layers
from builder.plan.ops import MakeDir
from builder.steps.kind import Key, Made, ReadyStep, StepKind, Usage, key_of
from cache.layer.snapshots import draft


class Workdir(StepKind):
    """Its key is the path on top of the root below."""

    def __init__(self, op: MakeDir, ready: ReadyStep, layers: Layers) -> None:
        self._op, self._ready, self._layers = op, ready, layers

    def key(self) -> Key:
        return key_of(self._op, [self._ready.parent.key], self._ready.parent)

    def key_ahead(self) -> Key:
        return self.key()

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        below = self._layers.unpacked(self._ready.parent.stack)
        with shown, draft(self._layers.store, below) as made:
            return Made(make_dir(self._op, made))
