"""``--cache-from`` and ``--cache-to``: shared caches, in the words of docker's buildx."""

from __future__ import annotations

import os
from collections.abc import Sequence

from builder.errors import UsageError
from builder.request import CachePlace
from builder.support.fields import parse_fields
from grammar.booleans import truth

_FROM, _TO = "--cache-from", "--cache-to"
_SWITCHES_OFF = ("image-manifest", "oci-mediatypes")  # always on here


def caches_from(items: Sequence[str]) -> tuple[CachePlace, ...]:
    """Return the caches of ``--cache-from``. Raises UsageError."""
    return tuple(_cache(text, _FROM) for text in items)


def caches_to(items: Sequence[str], arguments: dict[str, str]) -> tuple[CachePlace, ...]:
    """Return the caches of ``--cache-to``. Raises UsageError.

    The build argument BUILDKIT_INLINE_CACHE adds an inline cache, as in docker's buildx.
    """
    found = tuple(_cache(text, _TO) for text in items)
    wanted = truth(arguments.get("BUILDKIT_INLINE_CACHE", ""))
    if not wanted or any(place.kind == "inline" for place in found):
        return found
    return (*found, _cache("type=inline", _TO))


def _cache(text: str, option: str) -> CachePlace:
    """Return the cache that *text* names; a bare name is a registry's."""
    given = text if "=" in text else f"type=registry,ref={text}"
    fields = parse_fields(given, option)
    kind = fields.pop("type", "")
    for name in _SWITCHES_OFF:
        fields.pop(name, None)
    place = _place(kind, fields, text, option)
    mounts = fields.pop("mounts", "false")
    made = CachePlace(
        kind=kind,
        place=place,
        tag=fields.pop("tag", "latest"),
        digest=fields.pop("digest", ""),
        mode=fields.pop("mode", "min"),
        mounts=tuple(item for item in mounts.split(";") if item) if mounts not in ("true", "false") else (),
        all_mounts=mounts == "true",
        compression=fields.pop("compression", "zstd"),
        ignore_error=fields.pop("ignore-error", "false") == "true",
    )
    if fields or made.mode not in ("min", "max"):
        odd = next(iter(fields), f"mode={made.mode}")
        raise UsageError(f"{option} {text!r}: {odd!r} is not supported")
    if made.compression not in ("gzip", "zstd", "uncompressed"):
        raise UsageError(f"{option} {text!r}: compression is gzip, zstd or uncompressed")
    return made


def _place(kind: str, fields: dict[str, str], text: str, option: str) -> str:
    """Take the field that names the place out of *fields*; return a path, a reference, or ""."""
    from builder.images.local import reference
    from builder.shared_cache.backends import CACHE_BACKENDS  # few builds have shared caches

    writes = option == _TO
    if kind == "inline" and writes:
        return ""
    backend = CACHE_BACKENDS.get(kind)
    place = fields.pop(backend.destination if writes else backend.source, "") if backend is not None else ""
    if backend is None or not place:
        wanted = " or ".join(
            f"type={name},{item.destination if writes else item.source}={'DIR' if item.is_path else 'NAME'}"
            for name, item in CACHE_BACKENDS.items()
        )
        hint = "keep a local directory with the workflow's own cache: docs/ci.md" if kind == "gha" else ""
        raise UsageError(f"{option} {text!r} is not {wanted}" + (" or type=inline" if writes else ""), hint)
    if backend.is_path:
        return os.path.abspath(place)
    if writes and reference(place).digest:
        raise UsageError(f"{option} {text!r}: a cache is written under a tag, not a digest")
    return str(reference(place))
