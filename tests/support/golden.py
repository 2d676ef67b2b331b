"""An image as text, to be compared with what was expected, or with what another builder made."""

from __future__ import annotations

import json
import tarfile

from oci import Image


def describe(image: Image, base: Image) -> str:
    """What *image* has that *base* has not: files, settings, layers and history."""
    return "\n".join([*_files(image, base), *_settings(image), *_history(image, base)]) + "\n"


def _files(image: Image, base: Image) -> list[str]:
    below, here = base.root(), image.root()
    # A base is one layer; where the image is not made from it, nothing of it is gone.
    derived = image.config["rootfs"]["diff_ids"][:1] == base.config["rootfs"]["diff_ids"]
    if not derived:
        below = {}
    lines = [
        _look(path, *found) for path, found in sorted(here.items()) if not _equal(found, below.get(path))
    ]
    gone = [f"- {path}" for path in sorted(below) if path not in here]
    return ["files", *(f"  {line}" for line in lines + gone)]


def _equal(one: tuple[tarfile.TarInfo, bytes], other: tuple[tarfile.TarInfo, bytes] | None) -> bool:
    """Whether two entries look the same; the texts of large files are not made for that."""
    if other is None:
        return False
    (a, data), (b, below) = one, other
    names = ("uid", "gid", "type", "linkname")
    same = all(getattr(a, name) == getattr(b, name) for name in names)
    return same and data == below and (a.mode ^ b.mode) & 0o7777 == 0  # docker's tars have type bits, too


def _look(path: str, entry: tarfile.TarInfo, data: bytes) -> str:
    owner = f"{entry.uid}:{entry.gid}"
    if entry.issym():
        return f"l {owner} {path} -> {entry.linkname}"
    if entry.islnk():
        return f"h {path} = {entry.linkname}"
    kind = {tarfile.DIRTYPE: "d", tarfile.FIFOTYPE: "p"}.get(entry.type, "f")
    text = f" {data.decode('utf-8', 'replace')!r}" if kind == "f" else ""
    return f"{kind} {entry.mode & 0o7777:o} {owner} {path}{text}"


def _settings(image: Image) -> list[str]:
    out = ["config"]
    for name, value in sorted(image.settings.items()):
        if value and name not in ("Hostname", "Domainname", "Image", "ArgsEscaped"):
            out.append(f"  {name} {json.dumps(value, sort_keys=True)}")
    if image.config.get("author"):
        out.append(f"  author {image.config['author']}")
    return out


def _history(image: Image, base: Image) -> list[str]:
    lines = [item for item in image.history if item.get("created_by") not in _texts(base)]
    return [
        "history",
        *(f"  {'  ' if item.get('empty_layer') else 'L '}{item['created_by']}" for item in lines),
    ]


def _texts(image: Image) -> set[str]:
    return {item.get("created_by", "") for item in image.history}
