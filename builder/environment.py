"""The environment of a build: what all of it may use. It is made once and never changed.

What a build learns has owners of its own: ``Layers`` (where layers are), ``Containers`` (what runs),
``CacheMounts`` (what was emptied), ``StageContents`` (content digests), ``ContextSource`` (context files).
"""

from __future__ import annotations

from collections.abc import Mapping

from builder.copy.pack_process import Packer
from builder.errors import Cancelled
from builder.events import Sink
from builder.request import ClientOptions, Secret, Ssh
from builder.runtime.isolation import NAMESPACES, Isolation
from cache.store import Store
from grammar.structs import field, struct


class Cancellation:
    """Tells every thread of a build that the build was cancelled. Safe from any thread."""

    def __init__(self) -> None:
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def check(self) -> None:
        """Raise Cancelled if the build was cancelled. Call it now and then in work that takes long."""
        if self._cancelled:
            raise Cancelled


@struct
class Environment:
    """What a build uses.

    ``packer`` is the process that packs layers while files are copied, None where nothing is copied.
    ``isolation`` is how steps are separated from the machine. With ``shares_network``, steps that want the
    default network have this machine's. ``client`` is how servers are talked to. With ``no_cache``
    nothing that an earlier build derived is used.
    """

    store: Store
    sink: Sink
    secrets: Mapping[str, Secret]
    ssh: Mapping[str, Ssh]
    packer: Packer | None = None
    isolation: Isolation = NAMESPACES
    shares_network: bool = False
    client: ClientOptions = field(factory=ClientOptions)
    no_cache: bool = False
    cancellation: Cancellation = field(factory=Cancellation)
