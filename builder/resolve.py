"""Base images: from our own store, else pulled from a registry and kept under their name."""

from __future__ import annotations

from dataclasses import dataclass

from builder.events import Sink
from builder.image.local import config_of, snapshots
from builder.image.model import ImageConfig, Platform
from cache.digest import Digest
from cache.store import Store
from grammar.reference import Reference


@dataclass(frozen=True, slots=True)
class StoreResolver:
    """The planner's ImageResolver. A name the store has is never asked of a registry again."""

    store: Store
    sink: Sink
    insecure: frozenset[str]

    def resolve(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        image = self.store.resolve(str(reference))
        if image is None or not self.store.has_blob(image):
            from builder.pull import pull

            image = pull(self.store, reference, platform, self.sink, self.insecure)
        config = config_of(self.store, image)
        snapshots(self.store, config)  # every layer is there, or this says what is missing
        return image, config
