"""Names of users and groups, looked up in an image's own passwd and group files."""

from __future__ import annotations

import contextlib
import os
import re
import stat

from builder.errors import CopyError, UnknownName
from cache.layer.merged_tree import Tree

_LIMIT = 10 << 20
_MAX_ID = (1 << 31) - 2


def owner(tree: Tree, text: str, what: str) -> tuple[int, int]:
    """Return the ids of ``user[:group]`` (T16). A lone name has its primary group, a lone number is also
    the group. *what* names the option in errors.

    Raises BuildError for a name that the image does not have.
    """
    user, colon, group = text.partition(":")
    uid, primary = _user(tree, user, what)
    gid = _group(tree, group, what) if colon else primary
    return uid, gid


def owner_or_root(tree: Tree, text: str, what: str) -> tuple[int, int]:
    """Return the ids of ``user[:group]``. An unknown user is root, an unknown group that of the user."""
    user, colon, group = text.partition(":")
    uid = gid = 0
    with contextlib.suppress(UnknownName):
        uid, gid = _user(tree, user, what)
    if colon:
        with contextlib.suppress(UnknownName):
            gid = _group(tree, group, what)
    return uid, gid


def _user(tree: Tree, name: str, what: str) -> tuple[int, int]:
    if name in ("", "root"):
        return 0, 0
    if _numeric(name):
        number = _id(name, what)
        return number, number
    for fields in _lines(tree, "etc/passwd"):
        if fields[0] == name:
            return _id_of(fields, 2, what), _id_of(fields, 3, what)
    raise UnknownName(
        f"{what}: there is no user {name!r} in the image's /etc/passwd",
        "create the user in an earlier step, or give its number",
    )


def _group(tree: Tree, name: str, what: str) -> int:
    if name in ("", "root"):
        return 0
    if _numeric(name):
        return _id(name, what)
    for fields in _lines(tree, "etc/group"):
        if fields[0] == name:
            return _id_of(fields, 2, what)
    raise UnknownName(
        f"{what}: there is no group {name!r} in the image's /etc/group",
        "create the group in an earlier step, or give its number",
    )


def _numeric(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def _id(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID):
        raise CopyError(f"{what}: id {text!r} is not a number between 0 and {_MAX_ID}")
    return int(text)


def _id_of(fields: list[str], place: int, what: str) -> int:
    """Return the number in a field of a line; 0 if it is missing or no number, as in moby."""
    text = fields[place] if place < len(fields) else ""
    return _id(text.removeprefix("+"), what) if re.fullmatch(r"[+-]?[0-9]+", text) else 0


def _lines(tree: Tree, path: str) -> list[list[str]]:
    """Return the fields of each line; none of a missing file. An odd file is an error (RT-18)."""
    node = tree.lookup(path)
    if node is None:
        return []
    if not stat.S_ISREG(node.found.st_mode) or node.found.st_size > _LIMIT:
        raise CopyError(f"/{path} of the image is not a regular file of at most 10 MiB")
    fd = os.open(node.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    # As moby's readers have it, only the group file knows comments.
    return [line.split(":") for line in lines if line and not (line[0] == "#" and path == "etc/group")]
