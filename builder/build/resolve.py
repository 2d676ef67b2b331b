"""Base images: from the store, or pulled from a registry and kept under their name."""

from __future__ import annotations

from builder.environment import Environment
from builder.errors import BuildError
from builder.events import Notice
from builder.images.lazy_layers import Layers
from builder.images.local import config_of, remember_platform, snapshots
from builder.oci.manifest import parse_descriptor
from builder.oci.model import ImageConfig, Platform, host
from builder.plan.ops import Files
from builder.request import ClientOptions
from cache.digest import Digest, ImageId
from cache.memos import RemoteImage
from cache.store import Store
from grammar.reference import Reference
from grammar.structs import struct


@struct
class StoreResolver:
    """The planner's Resolver. ``layers`` learns where the layers of base images are.

    With ``metadata_only``, an image that is missing in the store is not pulled: only its config is read.
    With ``lazy``, its layers stay in the registry until a step needs their files. ``policy`` is ``--pull``:
    "missing" asks a registry only for images that the store has not, "always" asks for each, "newer" does
    too but goes on with the store's if the registry cannot be reached, "never" asks for none.
    """

    environment: Environment
    layers: Layers
    options: ClientOptions
    context: Files | None
    metadata_only: bool = False
    policy: str = "missing"
    lazy: bool = False

    def resolve(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        """Return the image ID and the config that *reference* means. Raises BuildError and CacheError."""
        store = self.environment.store
        found = find_image(store, reference, platform)
        image = None if self.policy in ("always", "newer") else found
        if image is None:
            if self.policy == "never":
                raise BuildError(
                    f"{reference.familiar} is not in the store, and --pull=never asks no registry",
                    f"run pybuild pull {reference.familiar}, or load it from an archive",
                    code="E-BASE-NOT-FOUND",
                )
            if self.lazy and platform == host() and not self.metadata_only:
                return self._leave(reference, platform)
            return self._from_registry(reference, platform, found)
        return image, self._checked_config(image)

    def _checked_config(self, image: Digest) -> ImageConfig:
        """Return the config of an image of the store. Raises CacheError for a layer that is missing."""
        config = config_of(self.environment.store, image)
        if not self.metadata_only and not all(map(self.layers.find, config.diff_ids)):
            snapshots(self.environment.store, config)  # raises the error that names what is missing
        return config

    def _from_registry(
        self, reference: Reference, platform: Platform, found: Digest | None
    ) -> tuple[Digest, ImageConfig]:
        """Pull an image, or its config. Where that fails, return *found* if the policy allows it."""
        from builder.images.pull import pull, pull_config  # HTTP takes 40 ms to import
        from builder.registry.errors import NotFound, Unauthorized, Unavailable

        store, sink = self.environment.store, self.environment.sink
        try:
            if self.metadata_only:
                return pull_config(reference, platform, self.options)
            image = pull(store, reference, platform, sink, self.options)
        except (NotFound, Unauthorized, Unavailable) as error:
            if self.policy == "always":
                raise
            here = found or store.resolve(str(reference))  # for another platform: the planner warns
            if here is None or not store.has_blob(here):
                raise
            image = here
            if self.policy == "newer":
                note = f"{reference.familiar} is used as it is here: {error.message}"
                sink(Notice(note, warning=True))
        if not self.metadata_only:
            remember_platform(store, reference, platform, image)
        return image, self._checked_config(image)

    def _leave(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        """Return the image ID and the config of an image whose layers stay in the registry.

        The index keeps what the reference meant: it means the same in the next build, without the registry.
        """
        from builder.images.pull import find_remote, remember_manifest  # HTTP takes 40 ms to import
        from builder.registry.repository import open_repository

        store = self.environment.store
        repository = open_repository(reference, self.options)
        known = None
        if self.policy == "missing":
            known = store.memos.remote_image(str(platform), str(reference))
        image: Digest
        if known is not None and store.has_blob(known.id):
            image = known.id
            layers = [parse_descriptor(item, "a layer") for item in known.layers]
            config = config_of(store, image)
        else:
            found_image = find_remote(repository, platform)
            layers, config = list(found_image.layers), found_image.config
            image = store.put_blob(found_image.config_bytes)
            remember_manifest(store, reference, image, found_image.named)
            described = [layer.to_json() for layer in layers]
            store.memos.set_remote_image(
                str(platform), str(reference), RemoteImage(ImageId(image), described)
            )
        found = zip(config.diff_ids, layers, strict=True)
        self.layers.keep_remote(str(reference), image, found, repository)
        return image, config

    def layout(self, place: str, platform: Platform) -> tuple[Digest, ImageConfig]:
        from builder.images.load import load_layout  # few builds need it

        image = load_layout(self.environment.store, place, platform)
        return image, config_of(self.environment.store, image)

    def files(self, url: str) -> Files:
        from builder.fetch.remote_contexts import context_of_url  # HTTP takes 40 ms to import

        return context_of_url(url, self.environment, keep_git_dir=False)


def find_image(store: Store, reference: Reference, platform: Platform) -> Digest | None:
    """Return the image of a reference in the store: the one pulled for *platform*, or one that fits it."""
    if platform != host():
        found = store.memos.platform_image(str(platform), str(reference))
        if found is not None and store.has_blob(found):
            ours = _architecture(config_of(store, found).platform) == _architecture(platform)
            if ours or found == store.resolve(str(reference)):  # otherwise the reference has moved on
                return found
    image = store.resolve(str(reference))
    if image is None or not store.has_blob(image):
        return None
    if platform != host() and _architecture(config_of(store, image).platform) != _architecture(platform):
        return None
    return image


def _architecture(platform: Platform) -> tuple[str, str]:
    return platform.os, platform.architecture
