"""Results that the plan names: the root of a base image, and files that were fetched to plan with."""

from __future__ import annotations

from contextlib import AbstractContextManager

from builder.images.lazy_layers import Layers
from builder.plan.identity import identity
from builder.plan.ops import Files, FromImage
from builder.steps.kind import Made, Solved, StepKind, Usage
from cache.keys import derive


class BaseImage(StepKind):
    """FROM: the layers of a base image. The resolver has seen to it that the store can have them."""

    def __init__(self, op: FromImage, layers: Layers) -> None:
        self._op, self._layers = op, layers

    def key(self) -> Solved:
        """Return the root of the image. Raises LayerLost."""
        stack = tuple(map(self._layers.required, self._op.diff_ids))
        return Solved(derive(*identity(self._op)), stack, 0)

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        raise AssertionError("a base image is never made")


class FetchedFiles(StepKind):
    """A build context that is no directory; it was fetched before the plan was made."""

    def __init__(self, op: Files) -> None:
        self._op = op

    def key(self) -> Solved:
        return Solved(derive(*identity(self._op)), (self._op.snapshot,), 0)

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        raise AssertionError("a fetched context is never made")
