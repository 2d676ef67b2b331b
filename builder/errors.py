"""Errors of the builder: what the user reads, the exit code, and the code of a page in docs/errors.md.

BuildError                  root: a message and a hint                       exit 1
    UsageError              an option or argument cannot be used as given    exit 2
    PlanError               the Dockerfile cannot be built; carries a Span
    ChecksFailed            the checks found something, and error=true
    StepError               a step failed; carries the step's name and Span
        CommandFailed       a RUN ended with a status or a signal
    CopyError               COPY, ADD or WORKDIR cannot read or place a file
        UnknownName         the image has no user or group of that name
    FetchError              a URL or a git repository cannot be fetched
    SecretError             a secret, or an SSH agent or key, cannot be used
    ImageError              root of builder.oci.errors
    OutputError             an output cannot be written
    SharedCacheError        a cache of --cache-from or --cache-to is unusable
        LayerLost           a shared cache lacks a layer that it promised
    RegistryConfigError     registries.conf, credentials or proxies are unusable
    RegistryError           root of builder.registry.errors
    Cancelled               the user stopped the build                       exit 130

A class has the code of most of its errors; ``code`` of the constructor replaces it for one error. Every code
has a page in ``builder/cli/error_pages``.
"""

from __future__ import annotations

from grammar.span import Span


class BuildError(Exception):
    """An error with a message for the user.

    ``hint`` is what to do, or "". ``span`` is the place in the Dockerfile, None where the error is about
    something else; ``excerpt`` are the lines to print with it.
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
    code = "E-OPTION"


class PlanError(BuildError):
    """An instruction that cannot be planned."""

    code = "E-DOCKERFILE"

    def __init__(
        self, message: str, span: Span | None = None, hint: str = "", *, code: str | None = None
    ) -> None:
        super().__init__(message, hint, code=code)
        self.span = span


class ChecksFailed(BuildError):
    """The checks found something in a Dockerfile with ``error=true``; the excerpt lists it."""

    code = "E-CHECKS"


class StepError(BuildError):
    """A step that could not be executed; ``code`` is that of the cause, if it has one."""

    code = "E-STEP"

    def __init__(
        self, message: str, step: str, span: Span | None, hint: str = "", *, code: str | None = None
    ) -> None:
        super().__init__(message, hint, code=code)
        self.step = step
        self.span = span


class CommandFailed(StepError):
    """A RUN whose process failed."""

    code = "E-STEP-FAILED"


class CopyError(BuildError):
    """A file that COPY, ADD or WORKDIR cannot read or place."""

    code = "E-COPY"


class UnknownName(CopyError):
    """A name that the image's passwd or group file does not have."""

    code = "E-USER"


class FetchError(BuildError):
    """A URL or a git repository that cannot be fetched."""

    code = "E-FETCH"


class SecretError(BuildError):
    """A secret, or an SSH agent or key, that cannot be used."""

    code = "E-SECRET"


class OutputError(BuildError):
    """An output that cannot be written."""

    code = "E-OUTPUT"


class SharedCacheError(BuildError):
    """A cache of ``--cache-from`` or ``--cache-to`` that cannot be used."""

    code = "E-CACHE"


class LayerLost(SharedCacheError):
    """A layer that a shared cache promised and does not give."""

    code = "E-CACHE-LAYER"


class RegistryConfigError(BuildError):
    """A configuration of registries, credentials or proxies that cannot be used."""

    code = "E-REGISTRY-CONFIG"


class Cancelled(BuildError):
    """Ctrl-C, SIGTERM or SIGHUP."""

    exit_code = 130
    code = "E-CANCELLED"

    def __init__(self) -> None:
        super().__init__("the build was cancelled")
