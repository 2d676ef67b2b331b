"""RUN --mount: prepare what is mounted into a container, and keep it there while the step runs.

Where the image has nothing at the target of a mount, an empty directory or file is its mount point. The
mount points lie in a layer of their own on top of the image, so none is left in the diff of the step (T85).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from builder.copy.sources import MADE_TIME
from builder.environment import Environment
from builder.errors import BuildError
from builder.plan.ops import BindMount, CacheMount, Mount, SecretMount, SshMount, TmpfsMount
from builder.request import Ssh
from builder.rootfs.mount_points import copy_bound
from builder.run.cache_mounts import CacheMounts
from builder.run.secrets import read_secret
from builder.runtime.spec import MountSpec
from cache.fs import real_folder
from cache.kernel import set_owner
from cache.layer.merged_tree import Tree
from cache.layer.snapshots import Draft, top_down, tree_of
from grammar.structs import field, struct

_EMPTY = b"mounts/proc"  # an empty directory of the store


@struct(frozen=False)
class Mounted:
    """What the mounts add to a container: mounts, variables, and the layer of their mount points.

    ``points`` is that layer's path, relative to the store, None where no mount point is missing.
    """

    specs: list[MountSpec] = field(factory=list)
    points: str | None = None
    env: dict[str, str] = field(factory=dict)


@contextlib.contextmanager
def mounted(
    mounts: tuple[Mount, ...],
    sources: Sequence[tuple[str, ...]],
    draft: Draft,
    environment: Environment,
    caches: CacheMounts,
) -> Iterator[Mounted]:
    """Prepare *mounts*. *sources* are the snapshots of the step's sources. Raises BuildError."""
    out = Mounted()
    targets: list[tuple[str, bool]] = []  # where, and whether it is a file
    with contextlib.ExitStack() as held:
        folders = caches.take(mounts, sources, held)
        for number, mount in enumerate(mounts):
            match mount:
                case BindMount():
                    layers = sources[mount.origin] if mount.origin >= 0 else ()
                    spec, is_file = _bind(mount, layers, draft, number)
                case CacheMount():
                    spec, is_file = _cache(mount, folders[number]), False
                case TmpfsMount():
                    spec, is_file = MountSpec(kind="tmpfs", size=mount.size, read_only=mount.read_only), False
                case SecretMount():
                    content = read_secret(environment.secrets, mount)
                    if mount.env:  # a missing secret is an empty variable, as in BuildKit
                        out.env[mount.env] = os.fsdecode(content or b"")
                    if content is None or not mount.target:
                        continue
                    spec, is_file = _secret(mount, content), True
                case SshMount():
                    if not _agent(mount, draft, number, environment.ssh, held):
                        continue
                    spec, is_file = _socket(draft, number), True
                case _:
                    assert_never(mount)
            target: str = mount.target
            spec["target"] = os.fsencode(target)
            out.specs.append(spec)
            targets.append((target, is_file))
        points = _make_points(draft, [*targets, *hidden_points(draft)])
        out.points = points.path
        yield out
        _drop_points(draft, points.only_there)


def _bind(mount: BindMount, layers: tuple[str, ...], draft: Draft, number: int) -> tuple[MountSpec, bool]:
    node = tree_of(draft.store, layers).lookup(mount.path) if layers else None
    if node is None and mount.path.strip("/."):
        raise BuildError(f'the source of the mount at {mount.target}: "{mount.path}": not found')
    lowers = [os.fsencode(f"snapshots/{name}") for name in top_down(draft.store, layers)]
    spec = MountSpec(kind="bind", lowers=[*lowers, _EMPTY], source=os.fsencode(mount.path or "/"))
    spec["read_only"] = mount.read_only
    if not draft.store.overlays:
        folder = os.path.join(draft.folder, f"mount{number}")
        os.mkdir(folder, 0o755)
        source = b"/"
        if layers:
            source = copy_bound(tree_of(draft.store, layers), node.path if node is not None else "", folder)
        relative = os.fsencode(os.path.relpath(folder, draft.store.root))
        spec = MountSpec(kind="store", path=relative, source=source, read_only=mount.read_only)
    elif not mount.read_only or not lowers:
        folder = os.path.join(draft.folder, f"mount{number}")
        for name in ("", "fs", "work"):
            os.mkdir(os.path.join(folder, name), 0o755)
        relative = os.fsencode(os.path.relpath(folder, draft.store.root))
        spec["upper"], spec["work"] = relative + b"/fs", relative + b"/work"
    return spec, node is not None and not node.is_dir


def _cache(mount: CacheMount, folder: str) -> MountSpec:
    source = os.fsencode(mount.path or "/") if mount.origin >= 0 else b"/"
    return MountSpec(kind="store", path=os.fsencode(folder), source=source, read_only=mount.read_only)


def _secret(mount: SecretMount, content: bytes) -> MountSpec:
    return MountSpec(kind="file", content=content, mode=mount.mode, uid=mount.uid, gid=mount.gid)


def _agent(
    mount: SshMount, draft: Draft, number: int, agents: Mapping[str, Ssh], held: contextlib.ExitStack
) -> bool:
    """Make the socket of an agent. Return False if none was given; raises BuildError if one is required."""
    given = agents.get(mount.id)
    if given is None:
        if mount.required:
            raise BuildError(f"unset ssh forward key {mount.id}", f"give it with --ssh {mount.id}")
        return False
    from builder.run.ssh import agent_socket  # few builds need it

    folder = os.path.join(draft.folder, f"ssh{number}")
    os.mkdir(folder, 0o700)
    held.enter_context(agent_socket(given, mount, folder, "socket"))
    return True


def _socket(draft: Draft, number: int) -> MountSpec:
    folder = os.path.relpath(os.path.join(draft.folder, f"ssh{number}"), draft.store.root)
    return MountSpec(kind="store", path=os.fsencode(folder), source=b"/socket", read_only=False)


# -- mount points --------------------------------------------------------------------------

# What every container has mounted, and whether it is a file.
_USUAL = (
    ("/proc", False),
    ("/sys", False),
    ("/dev", False),
    ("/etc/resolv.conf", True),
    ("/etc/hosts", True),
)


def hidden_points(draft: Draft) -> list[tuple[str, bool]]:
    """Return the usual mount points that the image has not, and whether each is a file.

    Every overlay has them in its lowest layer, but they do not show there where a layer has removed the
    directory, or put a symlink in its place.
    """
    root = draft.lower().root
    tree = Tree((*(root.folders if root is not None else ()), draft.store.path("mounts")))
    missing = [(path, is_file) for path, is_file in _USUAL if tree.lookup(path, follow=False) is None]
    above = {path: tree.lookup(os.path.dirname(path)) for path, _ in missing}
    return [item for item in missing if (node := above[item[0]]) is None or node.is_dir]


def make_usual_points(draft: Draft) -> str | None:
    """Make a layer with the usual mount points that the image has not.

    Return its path relative to the store, None where none is missing.
    """
    return _make_points(draft, hidden_points(draft)).path


@struct
class _Points:
    """A layer of mount points: its path relative to the store, and its directories that the image has not."""

    path: str | None
    only_there: list[str]


def _make_points(draft: Draft, targets: list[tuple[str, bool]]) -> _Points:
    """Make a layer with a mount point for each of the *targets* that the image does not have."""
    lower = draft.lower()
    missing = []
    for target, is_file in targets:
        path, node = lower.resolve(target)
        if node is None:
            missing.append((path, is_file))
    if not missing:
        return _Points(None, [])
    top = os.path.join(draft.folder, "points")
    os.mkdir(top, 0o755)
    made: dict[str, str] = {"": top}
    for path, is_file in missing:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            if part in made:
                continue
            made[part] = os.path.join(top, part)
            if is_file and depth == len(parts):
                os.close(os.open(made[part], os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            else:
                os.mkdir(made[part], 0o755)
    for part in sorted(made, reverse=True):
        _imitate(lower, part, made[part])
    only_there = [part for part in made if part and lower.lookup(part, follow=False) is None]
    return _Points(os.path.relpath(top, draft.store.root), only_there)


def _drop_points(draft: Draft, only_there: list[str]) -> None:
    """Remove from the diff the mount points whose metadata the step changed and that it left empty.

    The step may have put symlinks in their place: none is followed (SRC-05).
    """
    for part in sorted(only_there, reverse=True):
        above, _, name = part.rpartition("/")
        with contextlib.suppress(OSError), real_folder(draft.upper, above) as folder:
            os.rmdir(name, dir_fd=folder)  # unless it is gone, or no longer empty


def _imitate(lower: Tree, path: str, made: str) -> None:
    """Give a directory the metadata of the directory of the image that it hides."""
    node = lower.lookup(path, follow=False)
    if node is None:
        os.utime(made, ns=(MADE_TIME, MADE_TIME))
        return
    set_owner(made, node.found.st_uid, node.found.st_gid)
    os.chmod(made, stat.S_IMODE(node.found.st_mode))
    os.utime(made, ns=(node.found.st_mtime_ns, node.found.st_mtime_ns))
