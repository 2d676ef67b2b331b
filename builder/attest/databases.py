"""Read the databases of package managers.

Their bytes are untrusted. Readers use only the fields that they name, in linear time, and run nothing;
callers limit sizes. A record whose name or version is not one word is None.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from typing import NamedTuple

from builder.support.json_strict import loads

JSON_LIMIT = 1 << 20  # bytes of a package.json
_WORD_LIMIT = 500  # characters of a name or version
_GONE = ("not-installed", "config-files")  # states in which dpkg has no files of a package


class Package(NamedTuple):
    """An installed package. ``kind`` is its type as package URLs have it: deb, apk, pypi or npm.

    ``namespace`` is npm's scope, like "@babel". ``source`` is the source package if its name differs.
    Unknown fields are "".
    """

    kind: str
    namespace: str
    name: str
    version: str
    arch: str = ""
    source: str = ""


def read_debian(data: bytes) -> Iterator[Package | None]:
    """Read dpkg's status, or a file of its status.d (deb-control(5), dpkg-query(1))."""
    for fields in _paragraphs(data, ("Package", "Version", "Architecture", "Source", "Status")):
        if fields.get("Status", "").rpartition(" ")[2] in _GONE:
            continue
        source = fields.get("Source", "").partition(" ")[0]
        yield _package(
            "deb", "", fields.get("Package"), fields.get("Version"), fields.get("Architecture"), source
        )


def read_alpine(data: bytes) -> Iterator[Package | None]:
    """Read apk's database of installed packages (apk-package(5))."""
    for fields in _paragraphs(data, ("P", "V", "A", "o")):
        yield _package("apk", "", fields.get("P"), fields.get("V"), fields.get("A"), fields.get("o", ""))


def read_python(data: bytes) -> Iterator[Package | None]:
    """Read the metadata of a distribution, or its beginning (Core metadata specifications)."""
    for fields in _paragraphs(data, ("Name", "Version")):
        yield _package("pypi", "", fields.get("Name"), fields.get("Version"))
        return  # the description follows


def read_npm(data: bytes) -> Iterator[Package | None]:
    """Read a package.json; yield nothing if it names no package. Raises BuildError for invalid JSON."""
    value = loads(data.removeprefix(b"\xef\xbb\xbf"), "it", JSON_LIMIT)
    if not isinstance(value, dict):
        return
    name, version = value.get("name"), value.get("version")
    if not isinstance(name, str) or not isinstance(version, str) or not name or not version:
        return  # it configures a directory, or a private program
    scope, slash, rest = name.partition("/")
    if slash and (not scope.startswith("@") or not _is_word(scope) or "/" in rest):
        yield None
        return
    yield _package("npm", scope if slash else "", rest if slash else name, version)


def read_os_release(data: bytes) -> dict[str, str]:
    """Return the fields of an os-release (os-release(5)). Lines without an assignment are ignored."""
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        name, equals, value = line.strip().partition("=")
        if equals and name.isidentifier():
            if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
                value = value[1:-1]
            for quoted in '\\"$`':
                value = value.replace(f"\\{quoted}", quoted)
            fields[name] = value
    return fields


def _paragraphs(data: bytes, wanted: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield the fields *wanted* of each paragraph: the first of equal fields, and its first line."""
    names = {name.encode(): name for name in wanted}
    fields: dict[str, str] = {}
    for line in io.BytesIO(data):
        if not line.strip():
            if fields:
                yield fields
            fields = {}
            continue
        name, colon, value = line.partition(b":")
        if colon and name in names:
            fields.setdefault(names[name], value[: 4 * _WORD_LIMIT].decode("utf-8", "replace").strip())
    if fields:
        yield fields


def _package(
    kind: str, namespace: str, name: str | None, version: str | None, arch: str | None = "", source: str = ""
) -> Package | None:
    if not name or not version or not _is_word(name) or not _is_word(version):
        return None
    arch = arch if arch and _is_word(arch) else ""
    return Package(
        kind, namespace, name, version, arch, source if source != name and _is_word(source) else ""
    )


def _is_word(text: str) -> bool:
    """Return True if *text* can be a name or a version: one word, and not only punctuation."""
    if len(text) > _WORD_LIMIT or not text.isprintable() or any(map(str.isspace, text)):
        return False
    return any(map(str.isalnum, text))
