"""CopyFiles and MakeDir: write files into a layer without mounting it.

Destinations follow the rules of BuildKit (T1 to T28). builder.copy.layer_writer fills the layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from builder.copy.archives import add_archive
from builder.copy.layer_writer import NewMetadata, PreviousLayer, Writer
from builder.copy.pack_process import Packer
from builder.copy.sources import Selected, Selection, Source, TreeSource
from builder.errors import CopyError, UnknownName
from builder.images.users import owner, owner_or_root
from builder.plan.modes import Mode
from builder.plan.ops import CopyFiles, MakeDir, Picked
from cache.digest import SnapshotId
from cache.entry import DIRECTORY, FILE, Entry
from cache.layer.landlock import confined
from cache.layer.merged_tree import Tree
from cache.layer.snapshots import Draft

_CHUNK = 1 << 20


def copy_files(
    op: CopyFiles,
    draft: Draft,
    selection: list[Selection],
    previous: PreviousLayer | None = None,
    packer: Packer | None = None,
) -> SnapshotId:
    """Execute a COPY into *draft*, commit it, and return the ID of the snapshot.

    *selection* are the files of each item. *previous* is the last layer of the same COPY. Raises BuildError.
    """
    lower = draft.lower()
    ids = _owner(op, lower) if op.chown else None
    mode = Mode(op.chmod) if op.chmod else None
    writer = Writer(draft.upper, lower, NewMetadata(ids, mode, op.epoch), previous, packer)

    def fill() -> list[Entry]:
        for picked in selection:
            for selected in picked.chosen:
                unpack = isinstance(picked.item, Picked) and picked.item.unpack
                if not (unpack and add_archive(writer, picked.source, selected, op.dest)):
                    _copy_one(writer, picked.source, selected, op.dest)
        return writer.finish()

    try:
        # To link files of the last layer, it has to be as writable as the new one.
        folders = [draft.upper, *([previous.directory] if previous is not None else [])]
        return writer.commit(draft, confined(folders, fill))
    finally:
        writer.close()


def _owner(op: CopyFiles, lower: Tree) -> tuple[int, int]:
    """Return the owner of --chown (T16). With --link it must be numeric."""
    if not op.link:
        return owner(lower, op.chown, "--chown")
    try:
        return owner(lower, op.chown, "--chown")
    except UnknownName:
        raise CopyError(
            f"--chown={op.chown}: with --link the image's users are not read",
            "give numbers, or leave --link out",
        ) from None


def copy_tree(tree: Tree, folder: str, links: bool = True) -> None:
    """Copy all of *tree* into the empty *folder*."""
    copy_path(tree, "", folder, "/", links)


def copy_path(tree: Tree, path: str, folder: str, dest: str, links: bool = True) -> None:
    """Copy *path* of *tree* to *dest* in the empty *folder*.

    Without *links*, hard links become separate files, as when overlayfs copies them up.
    """
    writer = Writer(folder, Tree(()))

    def fill() -> None:
        _copy_one(writer, TreeSource(tree, links), Selected(os.path.basename(path), path), dest)
        writer.finish()

    try:
        confined([folder], fill)
    finally:
        writer.close()


def make_dir(op: MakeDir, draft: Draft) -> SnapshotId:
    """Execute a WORKDIR into *draft* and commit it. The layer is empty if the directory exists."""
    lower = draft.lower()
    path, node = lower.resolve(op.path)
    ids = None
    if op.user and node is None:
        # BuildKit has no passwd to look at where there is no layer yet, and gives up.
        look_up = owner if lower.root is None else owner_or_root
        ids = look_up(lower, op.user, f"WORKDIR {op.path} of USER {op.user}")
    writer = Writer(draft.upper, lower, NewMetadata(ids, epoch=op.epoch))
    try:
        if node is None:
            writer.make_parents(path)
        elif not node.is_dir:
            raise CopyError(f"WORKDIR {op.path}: the image has a file there")
        return writer.commit(draft, writer.finish())
    finally:
        writer.close()


def _copy_one(writer: Writer, source: Source, selected: Selected, dest: str) -> None:
    """Copy one selected path to *dest*, as BuildKit's copier decides where (T1, T3, T13)."""
    entries = iter(source.entries(selected))
    top, handle = next(entries)
    if top.kind == DIRECTORY:  # its contents are copied, never itself
        target = writer.resolve(dest)
        writer.make_parents(target, top.mtime if selected.path else None)  # T28; a context has no time
        for entry, handle in entries:
            path = f"{target}/{entry.path}" if target else entry.path
            if handle is None:
                writer.put_parent(path, entry)
            elif entry.link and entry.kind == FILE:
                link = f"{target}/{entry.link}" if target else entry.link
                writer.link(path, link, entry._replace(link=""), _content(source, handle))
            else:
                writer.put(path, entry, _content(source, handle))
        return
    writer.make_parents(writer.resolve(dest if dest.endswith("/") else os.path.dirname(dest)))
    target = writer.resolve(dest)
    if writer.is_directory(target):
        target = f"{target}/{selected.name}" if target else selected.name
    writer.make_parents(os.path.dirname(target))
    writer.put(target, top, _content(source, handle))


def _content(source: Source, handle: object) -> Iterator[bytes]:
    """Yield the bytes of a file, which is opened when the first are needed."""
    fd = source.open(handle)
    try:
        while data := os.read(fd, _CHUNK):
            yield data
    finally:
        os.close(fd)
