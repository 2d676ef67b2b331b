"""What a build reads before it plans: the Dockerfile, the ignore file, a context that is no directory."""

from __future__ import annotations

import errno
import os
import stat
import sys

from builder.environment import Environment
from builder.errors import BuildError, UsageError
from builder.plan.ops import Files
from builder.request import STDIN, BuildRequest
from builder.support.paths import why_missing
from cache.kernel import read_regular
from cache.layer.snapshots import tree_of
from grammar.errors import IgnoreError
from grammar.ignore import Ignore, parse_ignore
from grammar.structs import struct

_DOCKERFILE_LIMIT = 16 << 20
_NO_DOCKERFILE = "E-DOCKERFILE-NOT-FOUND"
_IGNORE_LIMIT = 1 << 20


@struct
class IgnoreFile:
    """An ignore file: its path and its bytes, None where there is none."""

    path: str
    content: bytes | None

    def parse(self) -> Ignore:
        """Return its rules. Raises BuildError with the line of a malformed pattern."""
        try:
            return parse_ignore(self.content or b"")
        except IgnoreError as error:
            raise BuildError(f"{self.path} line {error.line}: {error}", code=error.code) from None


_NO_IGNORE_FILE = IgnoreFile("", None)


@struct
class Inputs:
    """The files that steer a build, as read. ``dockerfile`` is a path and the bytes.

    ``absent`` are paths at which no file is, and at which one would have been read. ``files`` is the build
    context where that is no directory; the Dockerfile's path is then one in it, or "-" for standard input.
    """

    dockerfile: tuple[str, bytes]
    ignore: IgnoreFile
    absent: tuple[str, ...]
    files: Files | None = None

    @property
    def shown(self) -> str:
        """Return the name of the Dockerfile for messages."""
        path = self.dockerfile[0]
        if path == STDIN:
            return "Dockerfile (standard input)"
        if self.files is not None:
            return path
        try:
            return os.path.relpath(path)
        except OSError:  # the working directory has been removed
            return path

    @property
    def text(self) -> str:
        return self.dockerfile[1].decode("utf-8", "surrogateescape")


def read_inputs(request: BuildRequest, environment: Environment) -> Inputs:
    """Read the Dockerfile and the ignore file that applies. Raises BuildError or CacheError."""
    if request.remote:
        return _remote_inputs(request, environment)
    if request.dockerfile == STDIN:
        return _with_ignore(request, (STDIN, _stdin()))
    path = request.dockerfile or _default_dockerfile(request.context)
    # A symlink given with -f may lead anywhere; one in the context stays inside it (SRC-16).
    real = os.path.realpath(path) if request.dockerfile else path
    data = _read_regular(real, _DOCKERFILE_LIMIT, "the Dockerfile")
    if data is None:
        raise _no_dockerfile(request, path)
    return _with_ignore(request, (path, data))


def _no_dockerfile(request: BuildRequest, path: str) -> BuildError:
    other = os.path.join(request.context, "Containerfile")
    if os.path.islink(path) and os.path.exists(path):
        return BuildError(
            f"the Dockerfile {path} is a link to {os.readlink(path)}, which is not in the context",
            "name the file itself with -f, which may lie anywhere",
            code=_NO_DOCKERFILE,
        )
    hint = "name it with -f, or give its directory as the context"
    if not request.dockerfile and not os.path.lexists(path) and os.path.isfile(other):
        hint = f"use -f {os.path.relpath(other)}, which is there"
    return BuildError(f"there is no Dockerfile at {path}{why_missing(path)}", hint, code=_NO_DOCKERFILE)


def _with_ignore(request: BuildRequest, dockerfile: tuple[str, bytes]) -> Inputs:
    absent: list[str] = []
    if not request.dockerfile and dockerfile[0] == os.path.join(request.context, "dockerfile"):
        absent.append(os.path.join(request.context, "Dockerfile"))
    candidates = [os.path.join(request.context, ".dockerignore")]
    if dockerfile[0] != STDIN:
        candidates.insert(0, dockerfile[0] + ".dockerignore")
    for candidate in candidates:
        ignore = read_ignore(candidate)
        if ignore.content is not None:
            return Inputs(dockerfile, ignore, tuple(absent))
        absent.append(candidate)
    return Inputs(dockerfile, _NO_IGNORE_FILE, tuple(absent))


def read_ignore(path: str) -> IgnoreFile:
    """Read an ignore file. A directory of that name counts as none. Raises BuildError."""
    if os.path.isdir(path):
        return IgnoreFile(path, None)
    return IgnoreFile(path, _read_regular(path, _IGNORE_LIMIT, "the ignore file"))


def _default_dockerfile(context: str) -> str:
    """Return the path of ``Dockerfile``, or of ``dockerfile`` if there is only that."""
    path = os.path.join(context, "Dockerfile")
    lower = os.path.join(context, "dockerfile")
    return lower if not os.path.lexists(path) and os.path.lexists(lower) else path


def _read_regular(path: str, limit: int, what: str) -> bytes | None:
    """Return the bytes of a regular file, None where there is none. Raises BuildError.

    Symlinks are resolved inside the directory of the file.
    """
    try:
        data = read_regular(path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise BuildError(f"{what} {path} is not a regular file") from None
        raise BuildError(f"reading {what} {path}: {error.strerror}") from None
    return _limited(data, limit, f"{what} {path}")


def _limited(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise BuildError(f"{what} is larger than {limit >> 20} MiB")
    return data


def _stdin() -> bytes:
    return _limited(sys.stdin.buffer.read(_DOCKERFILE_LIMIT + 1), _DOCKERFILE_LIMIT, "the Dockerfile")


def _remote_inputs(request: BuildRequest, environment: Environment) -> Inputs:
    # HTTP takes 40 ms to import.
    from builder.fetch.remote_contexts import FILE_NAME, context_of_stream, context_of_url, empty_context

    if request.remote == STDIN:
        files, is_archive = context_of_stream(sys.stdin.buffer.read, environment)
        if not is_archive:  # then it is the Dockerfile, and there is no context
            if request.dockerfile:
                raise UsageError("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
            _path, data = _dockerfile_in(files, FILE_NAME, environment)
            return Inputs((STDIN, data), _NO_IGNORE_FILE, (), empty_context(environment))
    else:
        keep = request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "").lower() in ("1", "true")
        files = context_of_url(request.remote, environment, keep)
    if request.dockerfile == STDIN:
        return Inputs((STDIN, _stdin()), _NO_IGNORE_FILE, (), files)
    return Inputs(_dockerfile_in(files, request.dockerfile, environment), _NO_IGNORE_FILE, (), files)


def _dockerfile_in(files: Files, wanted: str, environment: Environment) -> tuple[str, bytes]:
    """Return the path in a fetched context, and the bytes, of its Dockerfile. Raises BuildError."""
    tree = tree_of(environment.store, (files.snapshot,))
    for path in (wanted,) if wanted else ("Dockerfile", "dockerfile"):
        try:
            node = tree.lookup(path)
        except OSError as error:
            raise BuildError(f"reading the Dockerfile {path}: {error.strerror}") from None
        if node is not None and stat.S_ISREG(node.found.st_mode):
            with open(node.real, "rb") as file:
                data = file.read(_DOCKERFILE_LIMIT + 1)
            return path, _limited(data, _DOCKERFILE_LIMIT, f"the Dockerfile {path}")
    hint = "name it with -f"
    if not wanted and tree.lookup("Containerfile") is not None:
        hint = "use -f Containerfile, which is there"
    raise BuildError(f"there is no {wanted or 'Dockerfile'} in the context", hint, code=_NO_DOCKERFILE)
