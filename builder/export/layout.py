"""Add an image to an OCI image layout in a directory."""

from __future__ import annotations

from collections.abc import Mapping

from builder.events import Meter, Sink
from builder.oci.layout import Layout
from builder.support.json_types import JsonObject
from cache.digest import Digest
from cache.store import Store


def write_layout(
    store: Store, blobs: Mapping[Digest, int], entries: list[JsonObject], dest: str, sink: Sink
) -> None:
    """Write *blobs* into the directory *dest*, and *entries* into its index in place of those of their names.

    Blobs that are there are left alone. Raises BuildError.
    """
    exporting = Meter("exporting", sum(blobs.values()), sink)
    layout = Layout(dest)
    for name, size in blobs.items():
        if layout.has(name, size):
            exporting.add(size)
        else:
            layout.put(name, store.blob_path(name), exporting.add)
    layout.add_entries(entries)
    exporting.finish()
