"""Look up the results of steps, in the store and in shared caches, and choose among several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from builder.images.lazy_layers import Layers
from builder.plan.graph import Plan, Step
from builder.steps.kind import EMPTY_ROOT, Key, MadeLayer, ReadyStep, Solved
from builder.support import debug
from cache.digest import DiffId, Layer
from cache.index import StepResult
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports

_MOST_LOOKED_AT = 2000  # steps that are looked at to choose one of several results


@struct
class Result:
    """The layer that a step gave, as the index names it, and when it was made, in nanoseconds."""

    layer: Layer
    created: int


class Lookup:
    """The results that are known of the steps of one plan."""

    def __init__(
        self,
        plan: Plan,
        layers: Layers,
        imports: Imports | None,
        key_ahead: Callable[[Step, Solved, Sequence[Solved]], Key | None],
        solved: Mapping[int, Solved],
    ) -> None:
        """*key_ahead* gives the key of a step on assumed results; *solved* are the real ones so far."""
        self._plan = plan
        self._layers = layers
        self._index = layers.store.index
        self._imports = imports
        self._key_ahead = key_ahead
        self._solved = solved

    def find(self, ready: ReadyStep, key: Key) -> Result | None:
        """Return a result of *ready* that the store or a shared cache has. Raises CacheError and LayerLost.

        Of several, return the one that most other steps were made on: a layer fits only what it was made on,
        and each machine has made its own.
        """
        known = self._results(key)
        if debug.enabled():
            places = "the store" if self._imports is None else "the store and the shared caches"
            debug.debug(f"lookup {key.value} in {places}: {', '.join(one.layer for one in known) or 'miss'}")
        if not known:
            return None
        best = known[0]
        if len(known) > 1:
            left = [_MOST_LOOKED_AT]
            best = max(
                known, key=lambda one: self._hits(ready.step, self.result(ready.parent, key, one), {}, left)
            )
        here = self._index.find(key.value)
        if here is None or (here.layer, here.created, here.identity) != (
            best.layer,
            best.created,
            key.description,
        ):
            # It counts once the layer is here.
            self._index.record(key.value, StepResult(best.layer, best.created, key.description))
        return best

    def result(self, parent: Solved, key: Key, result: Result) -> Solved:
        """Return the root that *result* makes on top of *parent*. Raises LayerLost."""
        layer = result.layer
        top = self._layers.required(layer) if isinstance(layer, DiffId) else layer
        runs = (*parent.runs, layer) if key.varies else parent.runs
        return Solved(key.value, (*parent.stack, top), result.created, runs, MadeLayer(layer, key.below))

    def _results(self, key: Key) -> list[Result]:
        """Return every known result, the store's own first."""
        found: dict[Layer, int] = {}
        here = self._index.find(key.value)
        if here is not None and here.identity == key.description:
            found[here.layer] = here.created
        if self._imports is not None:
            for layer, created in self._imports.find(key.value, key.below, pack=not found).items():
                found.setdefault(layer, created)
        return [Result(layer, created) for layer, created in found.items()]

    def _hits(self, step: Step, result: Solved, assumed: Mapping[int, Solved], left: list[int]) -> int:
        """Count the further steps that have results if *step* has *result*, and others the *assumed*.

        Only keys that need no files of layers are looked up; *left* is how many may still be.
        """
        assumed = {**assumed, id(step): result}
        count = 0
        for user in self._plan.steps[self._plan.steps.index(step) + 1 :]:
            inputs = [assumed.get(id(one)) or self._solved.get(id(one)) for one in user.inputs]
            known_inputs = [one for one in inputs if one is not None]
            if id(user) in assumed or id(user) in self._solved or len(known_inputs) < len(inputs):
                continue
            left[0] -= 1
            if left[0] < 0:
                break
            parent = known_inputs.pop(0) if user.parent is not None else EMPTY_ROOT
            key = self._key_ahead(user, parent, known_inputs)
            if key is None:
                continue
            roots = [self.result(parent, key, one) for one in self._results(key)]
            if len(roots) > 1:
                return count + 1 + max(self._hits(user, root, assumed, left) for root in roots)
            if roots:
                count += 1
                assumed[id(user)] = roots[0]
        return count
