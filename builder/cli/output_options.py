"""``-o``, ``--push``, ``--load`` and ``--annotation``: the outputs of a build."""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Sequence

from builder.cli.parser import pair
from builder.errors import UsageError
from builder.export.exporters import EXPORTERS
from builder.request import Annotation, Output
from builder.support.fields import parse_fields
from grammar.booleans import truth
from grammar.structs import replace

OUTPUT_HELP = f"output: {', '.join(EXPORTERS)} (docs/outputs.md)"
_FILES = ("tar", "local")
_PLACES = ("manifest", "manifest-descriptor", "index", "index-descriptor")
_FIELD = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)")
_PLACE = re.compile(r"([a-z-]+)(?:\[([A-Za-z0-9_/-]+)\])?")
_ESTARGZ = "estargz"
# Options of BuildKit's exporters that concern its own stores, or things that do not exist here.
_NO_EFFECT = {
    "store": "every image is in the store",
    "unpack": "the store unpacks layers when they are needed",
    "oci-artifact": "attestations are OCI artifacts in any case",
    "attestation-inline": "attestations are written where there is room for them",
    "attestation-prefix": "files have no attestations beside them",
    "dangling-name-prefix": "images without a name are known by their IDs",
    "danging-name-empty-only": "images without a name are known by their IDs",
    "prefer-nondist-layers": "layers are distributable in any case",
    "name-canonical": "an image is known by its digest in any case",
}


def outputs(options: argparse.Namespace) -> tuple[Output, ...]:
    """Return the outputs of ``-o``, ``--push`` and ``--load``. Raises UsageError."""
    found = [
        _output(text, options.tag) for text in options.output if text != "type=cacheonly"
    ]  # it is cached anyway
    if options.push and not any(output.kind == "registry" for output in found):
        found.append(_output("type=registry", options.tag))
    if options.load and not any(output.kind == "docker" and not output.dest for output in found):
        found.append(_output("type=docker", options.tag))
    _check_places(found, {"--iidfile": options.iidfile, "--metadata-file": options.metadata_file})
    return tuple(_annotated(found, options.annotation))


def _annotated(found: list[Output], items: list[str]) -> list[Output]:
    """Return the outputs; those with a manifest also have the annotations of ``--annotation``."""
    own = [annotation for item in items for annotation in _annotation(item)]
    if items and not any(EXPORTERS[output.kind].has_manifest for output in found):
        raise UsageError(
            "--annotation: nothing is written that has a manifest", "add --push or -o type=oci,..."
        )
    return [
        replace(output, annotations=(*own, *output.annotations))
        if EXPORTERS[output.kind].has_manifest
        else output
        for output in found
    ]


def _annotation(item: str) -> list[Annotation]:
    """Return the annotations of ``[PLACE[PLATFORM],...:]KEY=VALUE``, one for each place."""
    name, value = pair(item, "--annotation")
    places, colon, key = name.partition(":")
    if not colon:
        places, key = "manifest", name
    found = [(_PLACE.fullmatch(place), place) for place in places.split(",")]
    what = f"--annotation {item!r}"
    if not key or "=" not in item:
        raise UsageError(f"{what} is not KEY=VALUE, or PLACE:KEY=VALUE")
    return [
        _placed(what, match[1] if match else place, match and match[2], key, value) for match, place in found
    ]


def _placed(what: str, place: str, platform: str | None, key: str, value: str) -> Annotation:
    if place not in _PLACES:
        raise UsageError(f"{what}: {place!r} is not one of {', '.join(_PLACES)}")
    return Annotation(place, _platform(what, platform or ""), key, value)


def _platform(what: str, text: str) -> str:
    from builder.oci.model import host, parse_platform

    try:
        return str(parse_platform(text, host())) if text else ""
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


def _output(text: str, tags: Sequence[str]) -> Output:
    """``type=...,dest=...`` and what else docker's buildx has; a bare name is a directory that exists,
    or the file of an OCI archive.
    """
    from builder.images.local import new_name

    if "=" not in text:
        kind = "local" if text.endswith("/") or os.path.isdir(text) else "oci"
        return Output(kind, text if text == "-" else os.path.abspath(text))
    fields = parse_fields(text, "--output", exact="annotation")
    kind, dest = fields.pop("type", "oci"), fields.pop("dest", "")
    if kind not in EXPORTERS:
        raise UsageError(f"output type {kind!r} is not one of {', '.join(EXPORTERS)}")

    def switch(name: str, default: bool = False) -> bool:
        value = fields.pop(name, "") or str(default)
        if (on := truth(value)) is None:
            raise UsageError(f"--output {text!r}: {name} is true or false, not {value!r}")
        return on

    by_digest = switch("push-by-digest")
    push = switch("push", kind == "registry")
    if kind in ("registry", "image"):
        kind = "registry" if push else "image"
    given = [name for name in fields.pop("name", "").split(",") if name]
    if by_digest:
        _check_untagged(text, given or tags)
    mode = fields.pop("mode", "copy") if kind == "local" else ""
    if mode not in ("", "copy", "delete"):
        raise UsageError(f"--output {text!r}: mode is copy or delete, not {mode!r}")
    split = switch("platform-split") if kind in _FILES and "platform-split" in fields else None
    notes = [
        f"{name} of --output has no effect: {_NO_EFFECT[name]}" for name in list(fields) if name in _NO_EFFECT
    ]
    for name in _NO_EFFECT:
        fields.pop(name, None)
    if fields.get("compression") == _ESTARGZ:
        notes.append("layers are written as plain gzip, which readers of eStargz take, too")
    compression, level = _compression(text, fields)
    made = Output(
        kind,
        dest if dest == "-" else os.path.abspath(dest) if dest else "",
        switch("rewrite-timestamp"),
        tuple(new_name(name) for name in given),
        compression,
        level,
        switch("force-compression"),
        not switch("oci-mediatypes", True),
        _annotations(text, fields),
        not switch("tar", True),
        by_digest,
        switch("registry.insecure"),
        split,
        mode == "delete",
        tuple(notes),
    )
    if fields:
        raise UsageError(f"output option {next(iter(fields))!r} is not supported")
    _check(made, text)
    return made


def _check(made: Output, text: str) -> None:
    if not made.dest and EXPORTERS[made.kind].needs_dest:
        raise UsageError(f"--output {text!r} has no dest", "for example: -o type=oci,dest=app.tar")
    if made.folder and (made.kind != "oci" or made.dest == "-"):
        raise UsageError(f"--output {text!r}: tar=false makes a directory of type=oci")
    if made.kind == "local" and made.dest == "-":
        raise UsageError(
            f"--output {text!r}: a directory cannot be written to standard output", "use type=tar"
        )


def _check_untagged(text: str, names: Sequence[str]) -> None:
    """Raise UsageError for a name with a tag: an image that is pushed by digest gets none."""
    for name in names:
        if ":" in name.rpartition("/")[2]:
            raise UsageError(
                f"--output {text!r}: {name} has a tag, and what is pushed by digest gets none",
                "leave the tag out",
            )


def _compression(text: str, fields: dict[str, str]) -> tuple[str, int]:
    """Return compression and level; a level of zstd is limited to its range, as in BuildKit."""
    from cache.layer.compression import GZIP, LEVELS, NONE, ZSTD

    kind, word = fields.pop("compression", "") or GZIP, fields.pop("compression-level", "") or "0"
    if kind == _ESTARGZ:
        kind = GZIP
    if kind not in LEVELS:
        raise UsageError(f"--output {text!r}: compression is one of {', '.join(LEVELS)}")
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", word):
        raise UsageError(f"--output {text!r}: compression-level is not a number: {word!r}")
    level = int(word)
    if kind == NONE or level == 0:
        return kind, 0
    if kind == ZSTD:
        return kind, min(max(level, 1), LEVELS[kind].stop - 1)
    if level not in LEVELS[kind] and level != -1:  # zlib's word for the usual one
        raise UsageError(f"--output {text!r}: {kind} has levels 1 to {LEVELS[kind].stop - 1}")
    return kind, max(level, 0)


def _annotations(text: str, fields: dict[str, str]) -> tuple[Annotation, ...]:
    """Take ``annotation.KEY`` and ``annotation-PLACE[PLATFORM].KEY`` out of *fields*, and return them."""
    found = []
    for name in [name for name in fields if name.startswith("annotation")]:
        match = _FIELD.fullmatch(name)
        if match is None:
            raise UsageError(f"--output {text!r}: {name!r} is not annotation[-PLACE].KEY")
        found.append(
            _placed(f"--output {text!r}", match[1] or "manifest", match[2], match[3], fields.pop(name))
        )
    return tuple(found)


def _check_places(found: Sequence[Output], files: dict[str, str]) -> None:
    """Raise UsageError if two results have the same file or directory, or both standard output.

    Several images may share a layout. A device such as /dev/null may be used several times.
    """
    taken: dict[str, tuple[str, bool]] = {}
    wanted = [(f"-o type={one.kind}", one.dest, one.folder) for one in found if one.dest]
    for what, dest, layout in (*wanted, *((option, path, False) for option, path in files.items() if path)):
        place = _place(dest)
        if place in taken and not (layout and taken[place][1]):
            where = "standard output" if place == "-" else dest
            raise UsageError(f"{taken[place][0]} and {what} both write to {where}", "give each its own place")
        if place:
            taken[place] = what, layout


def _place(dest: str) -> str:
    """Return the identity of a destination: a path without links, "-" (standard output), "" (a device)."""
    if dest == "-":
        return dest
    try:
        found = os.stat(dest)
    except OSError:
        return os.path.realpath(dest)
    if stat.S_ISCHR(found.st_mode):
        return ""
    return "-" if os.path.samestat(found, os.fstat(1)) else os.path.realpath(dest)
