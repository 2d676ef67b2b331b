"""The state of a stage, and words expanded with its variables."""

from __future__ import annotations

import posixpath

from builder.errors import PlanError
from builder.oci.model import ImageConfig
from builder.plan.context import StageContext
from builder.plan.graph import HistoryLine, Step
from builder.plan.scope import NOT_IN_ENV
from grammar import ast
from grammar.errors import ExpansionError
from grammar.expansion import expand_word
from grammar.span import Span
from grammar.structs import field, replace, struct


@struct
class StageState:
    """What is known of a stage after some of its instructions; replaced, never changed.

    ``env`` is what words are expanded with and RUN sees: ENV and ARG in one namespace, the
    later one winning (T44). The image keeps only ENV: ``kept``, where it is not None, is what
    ``config`` will have of it. ``history`` is the last line so far.
    """

    config: ImageConfig
    root: Step | None = None
    env: dict[str, str] = field(factory=dict)
    args: tuple[tuple[str, str], ...] = ()
    history: HistoryLine | None = None
    cmd_set: bool = False
    workdir_set: bool = False
    kept: dict[str, str] | None = None

    def noted(self, created_by: str, step: Step | None = None) -> StageState:
        return replace(self, history=HistoryLine(created_by, step, self.history))

    def settled(self) -> StageState:
        """The same with ENV in the config: once for a stage, not once for each of its lines."""
        if self.kept is None:
            return self
        return replace(self, config=self.config.with_env(self.kept), kept=None)


def expand(
    text: str,
    state: StageState,
    context: StageContext,
    span: Span,
    raw_quotes: bool = False,
    whole: Span | None = None,
) -> str:
    """*text* with its variables replaced; with *raw_quotes* it is the body of a here-document.

    *whole* is the span of the instruction, where *span* is only that of the text.
    """
    missing: set[str] = set()
    try:
        escape = "\\" if raw_quotes else context.escape
        return expand_word(text, state.env, escape, missing, raw_quotes)
    except ExpansionError as error:
        what = "the here-document" if raw_quotes else repr(text)
        raise PlanError(f"failed to process {what}: {error}", span) from None
    finally:
        warn_undefined(missing, state, context, whole or span)


def warn_undefined(missing: set[str], state: StageState, context: StageContext, span: Span) -> None:
    """What was used and nobody set, nor declared."""
    if missing:
        known = {key for key, _ in state.args} | NOT_IN_ENV
        context.linter.undefined(missing - known, state.env, span)


def check_heredoc_name(heredoc: ast.Heredoc, span: Span) -> None:
    if "/" in heredoc.name or heredoc.name in (".", ".."):
        raise PlanError(f"a here-document cannot make a file called {heredoc.name!r}", span)


def clean(path: str) -> str:
    """An absolute path without dots, as text: links are not looked at."""
    return "/" + posixpath.normpath(path).lstrip("/")
