"""Archives to add, made in memory."""

from __future__ import annotations

import io
import tarfile

Member = tuple[str, bytes, str]  # name, type, content or link target


def tar(*members: Member, **pax_headers: str) -> bytes:
    """A tar with these members, *pax_headers* in a global header of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax_headers) as made:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = (
                kind,
                1_000_000_000,
                0o755 if kind == tarfile.DIRTYPE else 0o640,
            )
            info.uid, info.gid = 7, 8
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = text
                made.addfile(info)
            else:
                info.size = len(text)
                made.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


FILE, DIR, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
PLAIN = tar(("d", DIR, ""), ("d/f", FILE, "1"), ("l", LINK, "d/f"))
