"""The state of a stage, and the expansion of words with its variables."""

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
    """The state of a stage after some of its instructions. Immutable.

    ``env`` has the variables that words and RUN see: ENV and ARG in one namespace, the later one wins
    (T44). The image keeps only ENV: ``kept`` is the future ``config.env``, None if that is unchanged.
    ``history`` is the last line so far.
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
        """Return the state with ENV in the config. This runs once for a stage, not for each of its lines."""
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
    """Return *text* with its variables replaced. With *raw_quotes* it is the body of a here-document.

    *whole* is the span of the instruction if *span* is only that of the text.
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
    """Warn of each variable in *missing*: it is used, but neither set nor declared."""
    if missing:
        known = {key for key, _ in state.args} | NOT_IN_ENV
        context.linter.undefined(missing - known, state.env, span)


def check_heredoc_name(heredoc: ast.Heredoc, span: Span) -> None:
    if "/" in heredoc.name or heredoc.name in (".", ".."):
        raise PlanError(f"a here-document cannot make a file called {heredoc.name!r}", span)


def clean(path: str) -> str:
    """Return an absolute path without dots. Works on the text: symlinks are not followed."""
    return "/" + posixpath.normpath(path).lstrip("/")
