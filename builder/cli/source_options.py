"""What a build reads besides the store: build contexts, secrets, SSH agents."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from builder.cli.command_table import NAMES
from builder.cli.parser import pair
from builder.errors import UsageError
from builder.request import NamedContext, Secret, Ssh
from builder.support.fields import parse_fields
from builder.support.paths import why_missing
from grammar.suggest import suggestion

_CODE = "E-CONTEXT"


class Context(NamedTuple):
    """The build context: an absolute path, or "" and the URL or "-" that is read instead."""

    directory: str
    remote: str


def context(text: str) -> Context:
    """Return the build context that the argument *text* names. Raises UsageError."""
    if text == "-":
        return Context("", text)
    if os.path.isdir(text):
        return Context(os.path.abspath(text), "")
    from builder.plan.remote import is_remote

    if is_remote(text):
        return Context("", text)
    raise _no_context(text)


def _no_context(text: str) -> UsageError:
    """Return the error for *text*, which is no build context; its hint is about what may be meant."""
    hint = "CONTEXT is a directory, a URL, or - for standard input"
    if os.path.isfile(text):
        return UsageError(
            f"the build context {text} is a file, not a directory",
            f"name a Dockerfile with -f {text}, and a directory",
            code=_CODE,
        )
    if why := why_missing(text):
        return UsageError(f"the build context {text} does not exist{why}", hint, code=_CODE)
    if text in NAMES:
        return UsageError(
            f"no directory {text}; a command must come first",
            f"for example: pybuild {text} --help",
            code=_CODE,
        )
    if "/" not in text:
        return UsageError(
            f"no such command or directory: {text}{suggestion(text, NAMES)}",
            f"commands are {', '.join(NAMES)}; {hint}",
            code=_CODE,
        )
    return UsageError(f"the build context {text} does not exist", hint, code=_CODE)


def named_context(item: str) -> tuple[str, NamedContext]:
    """Return name and source of a ``--build-context``. Raises UsageError."""
    from builder.images.local import reference
    from builder.plan.remote import is_remote

    name, value = pair(item, "--build-context")
    name = reference(name).familiar.removesuffix(":latest")
    for prefix, kind in (("docker-image://", "image"), ("oci-layout://", "layout"), ("target:", "target")):
        if value.startswith(prefix):
            return name, NamedContext(kind, value.removeprefix(prefix))
    if os.path.isdir(value):
        return name, NamedContext("local", os.path.abspath(value))
    if is_remote(value):
        return name, NamedContext("url", value)
    raise UsageError(
        f"--build-context {item!r}: {value!r} is neither a directory nor a URL{why_missing(value)}"
    )


def secret(text: str) -> tuple[str, Secret]:
    """Return ID and source of a ``--secret``; the default is a variable or file named like the ID."""
    try:
        fields = parse_fields(text, "--secret")
    except UsageError:
        fields = {}  # the error below shows the form
    name, kind = fields.pop("id", ""), fields.pop("type", "")
    file = fields.pop("src", "") or fields.pop("source", "")
    variable = fields.pop("env", "")
    if not name or fields or kind not in ("", "file", "env") or (file and variable):
        raise UsageError(  # the text is not shown: it may hold the secret itself
            f"--secret{f' of id {name!r}' if name else ''} is not id=ID[,src=FILE|env=NAME]",
            "name a file or a variable that holds the secret: other users can see arguments",
        )
    if not file and not variable:
        if kind != "file" and name in os.environ:
            variable = name
        else:
            file = name
    elif kind == "env" and file:
        file, variable = "", file
    if file and not os.path.isfile(file):
        raise UsageError(f"--secret {text!r}: there is no file {file}{why_missing(file)}")
    if variable and variable not in os.environ:
        raise UsageError(f"--secret {text!r}: the environment has no variable {variable}")
    return name, Secret(os.path.abspath(file) if file else "", variable)


def ssh(text: str) -> tuple[str, Ssh]:
    """Return ID and source of an ``--ssh``: the socket of an agent, or key files. Raises UsageError."""
    name, _, places = text.partition("=")
    paths = [path for path in places.split(",") if path] or [os.environ.get("SSH_AUTH_SOCK", "")]
    if not name:
        raise UsageError(f"--ssh {text!r} has no id", "for example: --ssh default")
    if not paths[0]:
        raise UsageError(f"--ssh {text}: there is no agent", "start ssh-agent, so that SSH_AUTH_SOCK is set")
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"--ssh {text!r}: there is no {path}{why_missing(path)}")
    sockets = [path for path in paths if stat.S_ISSOCK(os.stat(path).st_mode)]
    if sockets and len(paths) > 1:
        raise UsageError(f"--ssh {text!r}: an agent's socket stands alone")
    if sockets:
        return name, Ssh(os.path.abspath(sockets[0]))
    return name, Ssh("", tuple(map(os.path.abspath, paths)))
