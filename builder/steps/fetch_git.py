"""ADD of a git repository: its files at a commit."""

from __future__ import annotations

from contextlib import AbstractContextManager

from builder.environment import Environment
from builder.plan.ops import FetchGit
from builder.steps.kind import Made, StepKind, Usage


class GitDownload(StepKind):
    """Its key is the commit, so that every user of an unchanged ref is a cache hit."""

    def __init__(self, op: FetchGit, environment: Environment, fresh: bool) -> None:
        self._op, self._environment, self._fresh = op, environment, fresh

    def key(self) -> None:
        return None

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        from builder.fetch.git import fetch_git  # few builds need it

        with shown:
            key, snapshot = fetch_git(self._op, self._environment, self._fresh)
        return Made(snapshot, key)
