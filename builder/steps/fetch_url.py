"""ADD of a URL: the file behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from builder.environment import Environment
from builder.plan.ops import FetchUrl
from builder.steps.kind import Made, StepKind, Usage


class UrlDownload(StepKind):
    """Its key is what the server gives, so that every user of an unchanged file is a cache hit."""

    def __init__(self, op: FetchUrl, environment: Environment, fresh: bool) -> None:
        self._op, self._environment, self._fresh = op, environment, fresh

    def key(self) -> None:
        return None

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        from builder.fetch.url import fetch_url  # HTTP takes 40 ms to import

        with shown:
            key, snapshot = fetch_url(self._op, self._environment, self._fresh)
        return Made(snapshot, key)
