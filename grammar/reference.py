"""Image references: ``[registry/]repository[:tag][@digest]`` (distribution/reference grammar).

Hand-written, with few imports: a cached build checks names too.
"""

from __future__ import annotations

from grammar.errors import ReferenceError_
from grammar.structs import struct

_DEFAULT_REGISTRY = "docker.io"
_OFFICIAL = "library/"
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TAG_FIRST = _ALNUM | {"_"}
_TAG_REST = _TAG_FIRST | {".", "-"}
_HEX = frozenset("0123456789abcdef")
_NAME_LIMIT = 255
_TAG_LIMIT = 128


@struct
class Reference:
    """A checked reference; ``tag`` or ``digest`` may be "", not both."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The registry and the repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The short form that docker users write."""
        short = self.name
        if self.registry == _DEFAULT_REGISTRY:
            short = self.repository.removeprefix(_OFFICIAL)
        return short + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def parse_reference(text: str) -> Reference:
    """Check and complete an image reference; the tag defaults to latest.

    Raises ReferenceError_ saying which part breaks the grammar.
    """
    if len(text) > 1024:
        raise ReferenceError_("it is longer than any image name")
    if "://" in text:
        raise ReferenceError_(f"a name has no {text.partition('://')[0]}:// before it")
    rest, at, digest = text.partition("@")
    if at:
        _check_digest(digest)
    tag = ""
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail:
        rest, tag = head, tail
        _check_tag(tag)
    registry, repository = _split_registry(rest)
    _check_repository(repository, rest)
    if len(registry) + 1 + len(repository) > _NAME_LIMIT:
        raise ReferenceError_(f"the name is longer than {_NAME_LIMIT} characters")
    if len(rest) == 64 and _HEX.issuperset(rest):
        raise ReferenceError_("64 hex digits are an image ID, not a name")
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def _split_registry(name: str) -> tuple[str, str]:
    """Split the registry off: a first component that can be a host (dot, port, localhost, capitals)."""
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_host:
        repository = name if slash else _OFFICIAL + name
        return _DEFAULT_REGISTRY, repository
    _check_host(first)
    if first == "index.docker.io":
        first = _DEFAULT_REGISTRY
    if first == _DEFAULT_REGISTRY and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _check_host(host: str) -> None:
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name = host
    elif not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ReferenceError_(f"the registry's port {port!r} is not a port number")
    if name.startswith("[") and name.endswith("]"):
        if not name[1:-1] or not set(name[1:-1].lower()) <= _HEX | {":"}:
            raise ReferenceError_(f"the registry {name!r} is not an IPv6 address")
        return
    for label in name.split("."):
        inner = label.replace("-", "")
        if not label or not _ALNUM.issuperset(inner) or label[0] == "-" or label[-1] == "-":
            raise ReferenceError_(f"the registry {name!r} is not a host name")


def _check_repository(repository: str, whole: str) -> None:
    for component in repository.split("/"):
        if not _is_component(component):
            what = (
                "it must be lower case" if whole != whole.lower() else f"{component!r} is not allowed in it"
            )
            raise ReferenceError_(f"the repository name is invalid: {what}")


def _is_component(text: str) -> bool:
    """Return True for lower-case letters and digits, joined by ".", "_", "__" or any number of "-"."""
    separator = ""
    last_alnum = False
    for char in text:
        if char in _LOWER:
            if separator and separator not in (".", "_", "__") and set(separator) != {"-"}:
                return False
            separator, last_alnum = "", True
        elif char in "._-" and (last_alnum or separator):
            separator, last_alnum = separator + char, False
        else:
            return False
    return last_alnum


def _check_tag(tag: str) -> None:
    if not tag or len(tag) > _TAG_LIMIT or tag[0] not in _TAG_FIRST or not _TAG_REST.issuperset(tag):
        raise ReferenceError_(f"the tag {tag[:130]!r} is invalid")


def _check_digest(digest: str) -> None:
    algorithm, _, encoded = digest.partition(":")
    if algorithm != "sha256" or len(encoded) != 64 or not _HEX.issuperset(encoded):
        raise ReferenceError_(f"{digest[:80]!r} is not a sha256 digest")
