"""Content digests of files of stages, remembered so that a cached stage need not be read.

A COPY from a stage has the content of its files in its key: a stage that was rebuilt to equal files
is a cache hit (T99).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.shared_cache.content_keys import ContentKey
from builder.steps.kind import Solved
from cache.memos import Memos
from grammar.structs import field, struct

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports


@struct(frozen=False)
class StageContents:
    """The digests that one build uses. ``used`` are those, for shared caches.

    With ``recompute`` (--no-cache) no remembered digest is read.
    """

    memos: Memos
    imports: Imports | None
    recompute: bool
    used: dict[ContentKey, str] = field(factory=dict)

    def known(self, alias: ContentKey) -> str | None:
        """Return the digest that is remembered of files of stages with equal keys, None if there is none."""
        content = None if self.recompute else self.ahead(alias)
        if content is not None:
            self.used[alias] = content
        return content

    def ahead(self, alias: ContentKey) -> str | None:
        """Return what ``known`` would, without taking it as used."""
        content = self.memos.content(alias.local())
        if content is None and self.imports is not None:
            content = self.imports.content(alias)
        return content

    def remember(self, alias: ContentKey, content: str) -> None:
        """Keep a digest that was computed from the files."""
        self.memos.set_content(alias.local(), content)
        self.used[alias] = content


def alias_of(kind: str, fields: dict[str, object], keys: list[str], sources: Sequence[Solved]) -> ContentKey:
    """Return the name of a digest of files of *sources*, taken as *kind* and *fields* say."""
    layers = tuple(layer for source in sources for layer in source.stack)
    lengths = [len(source.stack) for source in sources]
    return ContentKey(kind, fields, (*keys, *(source.key for source in sources), *map(str, lengths)), layers)
