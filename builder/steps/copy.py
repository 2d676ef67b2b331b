"""COPY and ADD: files of the build context, of stages and of the Dockerfile, as a layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from builder.copy.context_source import ContextSource
from builder.copy.layer_writer import PreviousLayer
from builder.copy.pack_process import Packer
from builder.copy.place import copy_files
from builder.copy.sources import InlineSource, Selection, Source, TreeSource
from builder.errors import BuildError
from builder.images.lazy_layers import Layers
from builder.plan.identity import identity
from builder.plan.ops import CONTEXT, CopyFiles, Inline, Picked
from builder.shared_cache.content_keys import ContentKey
from builder.steps.contents import StageContents, alias_of
from builder.steps.kind import EMPTY_ROOT, Key, Made, ReadyStep, Solved, StepKind, Usage, key_of
from cache.digest import SnapshotId
from cache.errors import CacheError
from cache.keys import derive
from cache.layer.merged_tree import Tree
from cache.layer.snapshots import Draft, draft, manifest, tree_of


class Copy(StepKind):
    """Its key has the names and the content of the files; with --link nothing of the root below (T97)."""

    def __init__(
        self,
        *,
        op: CopyFiles,
        ready: ReadyStep,
        contexts: Mapping[str, ContextSource],
        layers: Layers,
        contents: StageContents,
        packer: Packer | None,
    ) -> None:
        """*contexts* are the directories of this machine that it may copy from, by their names."""
        self._op, self._ready = op, ready
        self._below: Solved = EMPTY_ROOT if op.link else ready.parent
        self._contexts, self._layers, self._contents, self._packer = contexts, layers, contents, packer
        self._selection: list[Selection] | None = None

    def key(self) -> Key:
        alias = self._alias()
        content = self._contents.known(alias) if alias is not None else None
        if content is None:
            content = _digest(self._selected())
            if alias is not None:
                self._contents.remember(alias, content)
        return key_of(self._op, [self._below.key, content], self._below)

    def key_ahead(self) -> Key | None:
        content: str | None = None
        if not self._ready.sources:
            try:
                content = _digest(self._selected())
            except (BuildError, CacheError):
                return None  # ``key`` reports it when the step's turn comes
        elif (alias := self._alias()) is not None:
            content = self._contents.ahead(alias)
        return key_of(self._op, [self._below.key, content], self._below) if content else None

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        selection = self._selected()
        below = self._layers.unpacked(self._below.stack)
        with shown, draft(self._layers.store, below) as made:
            return Made(self._copy(made, selection))

    def _alias(self) -> ContentKey | None:
        """Return the name of the content's digest if all of it is files of stages."""
        if not self._ready.sources or self._op.reads_context:
            return None
        kind, fields = identity(self._op)
        return alias_of(kind, fields, [self._below.key], self._ready.sources)

    def _selected(self) -> list[Selection]:
        """Return the files that each item of the operation means; they are searched for once."""
        if self._selection is None:
            self._selection = [
                Selection(item, source, source.select(item, self._op.exclude))
                for item in self._op.items
                for source in [self._source(item)]
            ]
        return self._selection

    def _source(self, item: Picked | Inline) -> Source:
        if isinstance(item, Inline):
            return InlineSource(item, self._op.epoch)
        if item.origin == CONTEXT:
            return self._contexts[item.context]
        store = self._layers.store
        stack = self._ready.sources[item.origin].stack if item.origin >= 0 else ()
        layers = self._layers.unpacked(stack)
        return TreeSource(tree_of(store, layers) if layers else Tree((store.empty,)))

    def _copy(self, made: Draft, selection: list[Selection]) -> SnapshotId:
        """Copy into the draft and commit it. The last layer of the same COPY may lend its files."""
        op, store = self._op, self._layers.store
        if not op.reads_context:
            return copy_files(op, made, selection, None, self._packer)
        used = {item.context for item in op.items if isinstance(item, Picked) and item.origin == CONTEXT}
        names = [self._contexts[name].name for name in sorted(used)]
        place = derive("place", identity(op)[1], names)
        last = store.memos.last_copy(place)
        entries = manifest(store, last) if last is not None else None
        previous = None
        if last and entries is not None:
            previous = PreviousLayer(store.path("snapshots", last), entries)
        snapshot = copy_files(op, made, selection, previous, self._packer)
        store.memos.set_last_copy(place, snapshot)
        return snapshot


def _digest(selection: Sequence[Selection]) -> str:
    """Return the digest of every match, by name (T97) and content."""
    sha = hashlib.sha256()
    for picked in selection:
        for selected in picked.chosen:
            line = f"{selected.name}\0{picked.source.digest(selected)}\0"
            sha.update(line.encode("utf-8", "surrogateescape"))
        sha.update(b"\0")
    return sha.hexdigest()
