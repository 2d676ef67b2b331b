"""What package managers leave of themselves: the bytes of their databases to packages.

The bytes are from strangers. Readers take nothing but the fields they name, in time linear to what they
are given, and run nothing; who calls them sees to sizes. A record whose name or version is no text of
one word is None.
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

    ``namespace`` is npm's scope, like "@babel"; ``source`` is the package that it was built from, by
    another name. What is not known is "".
    """

    kind: str
    namespace: str
    name: str
    version: str
    arch: str = ""
    source: str = ""


def read_debian(data: bytes) -> Iterator[Package | None]:
    """dpkg's status, or a file of its status.d (deb-control(5), dpkg-query(1))."""
    for fields in _paragraphs(data, ("Package", "Version", "Architecture", "Source", "Status")):
        if fields.get("Status", "").rpartition(" ")[2] in _GONE:
            continue
        source = fields.get("Source", "").partition(" ")[0]
        yield _package(
            "deb", "", fields.get("Package"), fields.get("Version"), fields.get("Architecture"), source
        )


def read_alpine(data: bytes) -> Iterator[Package | None]:
    """apk's database of what is installed (apk-package(5))."""
    for fields in _paragraphs(data, ("P", "V", "A", "o")):
        yield _package("apk", "", fields.get("P"), fields.get("V"), fields.get("A"), fields.get("o", ""))


def read_python(data: bytes) -> Iterator[Package | None]:
    """The metadata of a distribution, or its beginning (Core metadata specifications)."""
    for fields in _paragraphs(data, ("Name", "Version")):
        yield _package("pypi", "", fields.get("Name"), fields.get("Version"))
        return  # the description follows


def read_npm(data: bytes) -> Iterator[Package | None]:
    """A package.json; nothing of one that names no package. Raises BuildError for what is no JSON."""
    value = loads(data.removeprefix(b"\xef\xbb\xbf"), "it", JSON_LIMIT)
    if not isinstance(value, dict):
        return
    name, version = value.get("name"), value.get("version")
    if not isinstance(name, str) or not isinstance(version, str) or not name or not version:
        return  # it tells how to load a folder, or is somebody's own program
    scope, slash, rest = name.partition("/")
    if slash and (not scope.startswith("@") or not _is_word(scope) or "/" in rest):
        yield None
        return
    yield _package("npm", scope if slash else "", rest if slash else name, version)


def read_os_release(data: bytes) -> dict[str, str]:
    """The fields of an os-release (os-release(5)); those that are no assignment are left out."""
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
    """The fields *wanted* of each paragraph; of equal ones the first, of each its first line."""
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
    """Whether it can be a name or a version: of one word, and not of punctuation alone."""
    if len(text) > _WORD_LIMIT or not text.isprintable() or any(map(str.isspace, text)):
        return False
    return any(map(str.isalnum, text))
