"""Base images: from our own store, else pulled from a registry and kept under their name."""

from __future__ import annotations

from builder.environment import Workshop
from builder.errors import BuildError
from builder.events import Notice
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
    """The planner's Resolver. A name the store has is never asked of a registry again.

    With *lazy* an image that is not here is left in its registry until its files are needed. With
    *metadata_only* an image that is not here is not pulled: its config is all that is
    asked for. *policy* is that of ``--pull``: whether a registry is asked always, when something is missing,
    never, or always but in vain if need be ("newer").
    """

    workshop: Workshop
    options: ClientOptions
    context: Files | None
    metadata_only: bool = False
    policy: str = "missing"
    lazy: bool = False

    def resolve(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        store = self.workshop.store
        found = find_image(store, reference, platform)
        image = None if self.policy in ("always", "newer") else found
        if image is None and self.policy == "never":
            raise BuildError(
                f"{reference.familiar} is not in the store, and --pull=never asks no registry",
                f"pybuild pull {reference.familiar}, or load it from an archive",
            )
        if image is None:
            from builder.images.pull import pull, pull_config
            from builder.registry.errors import NotFound, Unauthorized, Unavailable

            if self.lazy and platform == host() and not self.metadata_only:
                return self._leave(reference, platform)
            try:
                if self.metadata_only:
                    return pull_config(reference, platform, self.options)
                image = pull(store, reference, platform, self.workshop.sink, self.options)
            except (NotFound, Unauthorized, Unavailable) as error:
                if self.policy == "always":
                    raise
                image = found or store.resolve(str(reference))  # for another platform: the planner warns
                if image is None or not store.has_blob(image):
                    raise
                if self.policy == "newer":
                    note = f"{reference.familiar} is used as it is here: {error.message}"
                    self.workshop.sink(Notice(note, warning=True))
            if not self.metadata_only:
                remember_platform(store, reference, platform, image)
        config = config_of(store, image)
        if not self.metadata_only and not all(map(self.workshop.layers.named, config.diff_ids)):
            snapshots(store, config)  # says what is missing
        return image, config

    def _leave(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        """The image ID and the config of an image whose layers stay where they are.

        What a name meant is kept, so that it means the same the next time and no registry need be there.
        """
        from builder.images.pull import find_remote, remember_manifest
        from builder.registry.repository import open_repository

        store = self.workshop.store
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
        self.workshop.layers.leave(str(reference), image, found, repository)
        return image, config

    def layout(self, place: str, platform: Platform) -> tuple[Digest, ImageConfig]:
        from builder.images.load import load_layout

        image = load_layout(self.workshop.store, place, platform)
        return image, config_of(self.workshop.store, image)

    def files(self, url: str) -> Files:
        from builder.fetch.remote_contexts import context_of_url

        return context_of_url(url, self.workshop, keep_git_dir=False)


def find_image(store: Store, reference: Reference, platform: Platform) -> Digest | None:
    """The image of a name in the store: the one that was pulled for *platform*, else any."""
    if platform != host():
        found = store.memos.platform_image(str(platform), str(reference))
        if found is not None and store.has_blob(found):
            ours = _architecture(config_of(store, found).platform) == _architecture(platform)
            if ours or found == store.resolve(str(reference)):  # else it stood in, and its name has moved
                return found
    image = store.resolve(str(reference))
    if image is None or not store.has_blob(image):
        return None
    if platform != host() and _architecture(config_of(store, image).platform) != _architecture(platform):
        return None
    return image


def _architecture(platform: Platform) -> tuple[str, str]:
    return platform.os, platform.architecture
