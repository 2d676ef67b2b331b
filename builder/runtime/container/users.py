"""The user of a step: USER, resolved against the image's passwd and group files.

They are parsed here, and not by the C library, whose name services would load code of the image.
"""

import errno
import os
import stat

from builder.runtime.errors import SetupError
from cache.kernel import open_in_root

_PASSWD_LIMIT = 10 << 20
_ID_LIMIT = (1 << 31) - 1


class User:
    """The ids of a step's process, its supplementary groups, and its home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: bytes) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, groups, home


def find_user(root: int, text: bytes) -> User:
    """Resolve USER against the image whose root is the descriptor *root*. Raises SetupError.

    ``name`` adds the groups that list it, ``name:group`` takes only that group. Numbers need no entry, and
    never fall back to a name (RT-17). An empty user is 0. The home directory is that of the first entry with
    the uid, even if another entry was named.
    """
    user, group, *_more = [*text.split(b":"), b""]
    user = user or b"0"
    passwd = [line.split(b":") for line in _read_database(root, b"etc/passwd")]
    if _is_number(user):
        uid = _number(user)
        entry = next((fields for fields in passwd if _number_of(fields, 2) == uid), None)
    else:
        entry = next((fields for fields in passwd if fields[0] == user), None)
        if entry is None:
            name = os.fsdecode(user)
            raise SetupError(f"unable to find user {name}: no matching entries in passwd file")
        uid = _number_of(entry, 2)
    gid = _number_of(entry, 3) if entry else 0
    homes = (b"".join(fields[5:6]) for fields in passwd if _number_of(fields, 2) == uid)
    home = next(homes, b"") or b"/"
    if group:
        gid = _find_group(root, group)
        return User(uid, gid, [gid], home)
    groups = [gid]
    if entry is not None:
        for fields in (line.split(b":") for line in _read_database(root, b"etc/group")):
            if len(fields) >= 4 and entry[0] in fields[3].split(b",") and _is_number(fields[2]):
                groups.append(_number(fields[2]))
    return User(uid, gid, list(dict.fromkeys(groups)), home)


def _find_group(root: int, group: bytes) -> int:
    if _is_number(group):
        return _number(group)
    for line in _read_database(root, b"etc/group"):
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] == group and _is_number(fields[2]):
            return _number(fields[2])
    raise SetupError(f"unable to find group {os.fsdecode(group)}: no matching entries in group file")


def _is_number(text: bytes) -> bool:
    """Return whether *text* is meant as a number. Signs and blanks count, so that they are refused as one."""
    return bool(text) and text.strip().lstrip(b"+-").isdigit()


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) >= _ID_LIMIT:
        raise SetupError(f"user or group id {os.fsdecode(text)} is not between 0 and {_ID_LIMIT - 1}")
    return int(text)


def _number_of(fields: list[bytes], place: int) -> int:
    """Return a field of a line; a field that is missing or not a number is 0."""
    text = fields[place] if place < len(fields) else b""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    return _number(text.removeprefix(b"+")) if digits.isdigit() else 0


def _read_database(root: int, path: bytes) -> list[bytes]:
    """Return the lines of the image's passwd or group file, none if it is missing. Raises SetupError."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise SetupError(f"reading /{os.fsdecode(path)} of the image: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _PASSWD_LIMIT:
        raise SetupError(f"/{os.fsdecode(path)} of the image is not a regular file of at most 10 MiB")
    data = os.read(fd, found.st_size + 1)
    os.close(fd)
    # Only the group file has comments, as in moby's readers.
    lines = [line.strip() for line in data.split(b"\n")]
    return [line for line in lines if line and not (line.startswith(b"#") and path == b"etc/group")]
