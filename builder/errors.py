"""Errors of the builder, and the exit codes they end the command with.

BuildError              root: what was attempted on what, and a hint     exit 1
    UsageError          the command line asks for something impossible   exit 2
    PlanError           the Dockerfile cannot be built; carries a Span   exit 1
    StepError           a step failed; carries the step's name and Span  exit 1
        CommandFailed   a RUN ended with a status or a signal            exit 1
    ChecksFailed        the checks found something, and error=true       exit 1
    LayerLost           a shared cache lacks a layer that it promised    exit 1
    Cancelled           the user stopped the build                       exit 130
"""

from __future__ import annotations

from grammar.span import Span


class BuildError(Exception):
    """Something the builder could not do; ``hint`` is what to do about it, or "".

    ``span`` is where in the Dockerfile, None when that is not what it is about; ``excerpt`` are
    the lines to show with it.
    """

    exit_code = 1
    code = "E-BUILD"

    def __init__(self, message: str, hint: str = "", excerpt: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code
        self.excerpt = excerpt
        self.span: Span | None = None


class UsageError(BuildError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class PlanError(BuildError):
    """An instruction that cannot be planned."""

    def __init__(self, message: str, span: Span | None = None, hint: str = "") -> None:
        super().__init__(message, hint)
        self.span = span


class StepError(BuildError):
    """A step that could not be executed."""

    def __init__(self, message: str, step: str, span: Span | None, hint: str = "") -> None:
        super().__init__(message, hint)
        self.step = step
        self.span = span


class CommandFailed(StepError):
    """A RUN whose process failed."""


class ChecksFailed(BuildError):
    """The file takes what its checks find for errors; the excerpt tells what they found."""


class LayerLost(BuildError):
    """A layer that a shared cache promised cannot be had from it."""


class Cancelled(BuildError):
    """Ctrl-C or SIGTERM."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("the build was cancelled")
