"""RUN --mount, from the builder's side: what is mounted, and that it is there while the step runs.

Where an image has no directory or file at a mount's target, an empty one lies in a layer of its
own on top of the image, as a mount point; so nothing of it can be left in the step's diff
(T85). Caches are directories of the store, held by flock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator

from builder.copy.place import copy_tree
from builder.copy.sources import MADE_TIME
from builder.environment import Workshop
from builder.errors import BuildError
from builder.events import Notice
from builder.plan.ops import BindMount, CacheMount, Mount, SecretMount, SshMount, TmpfsMount
from builder.rootfs.mount_points import copy_bound
from builder.run.secrets import read_secret
from builder.runtime.isolation import NAMESPACES
from builder.runtime.spec import MountSpec
from cache.fs import real_folder, remove_devices, remove_tree
from cache.kernel import set_owner
from cache.layer.merged_tree import Tree
from cache.layer.snapshots import Draft, top_down, tree_of
from cache.locks import try_lock
from grammar.structs import field, struct

_EMPTY = b"mounts/proc"  # an empty directory of the store
_POLL = 0.05  # seconds between two tries to get a cache


@struct(frozen=False)
class Mounted:
    """What a container is told: its mounts, the layer of mount points ("" for none), variables."""

    specs: list[MountSpec] = field(factory=list)
    points: str = ""
    env: dict[str, str] = field(factory=dict)


@contextlib.contextmanager
def mounted(
    mounts: tuple[Mount, ...], sources: list[tuple[str, ...]], draft: Draft, workshop: Workshop
) -> Iterator[Mounted]:
    """Prepare *mounts*; *sources* are the layers of what they number. Raises BuildError."""
    out = Mounted()
    targets: list[tuple[str, bool]] = []  # where, and whether it is a file
    with contextlib.ExitStack() as held:
        caches = _take_caches(mounts, sources, workshop, held)
        for number, mount in enumerate(mounts):
            match mount:
                case BindMount():
                    layers = sources[mount.origin] if mount.origin >= 0 else ()
                    spec, is_file = _bind(mount, layers, draft, number)
                case CacheMount():
                    spec, is_file = _cache(mount, caches[number]), False
                case TmpfsMount():
                    spec, is_file = MountSpec(kind="tmpfs", size=mount.size, read_only=mount.read_only), False
                case SecretMount():
                    content = read_secret(workshop.secrets, mount)
                    if mount.env:  # one that is missing is empty, as in BuildKit
                        out.env[mount.env] = os.fsdecode(content or b"")
                    if content is None or not mount.target:
                        continue
                    spec, is_file = _secret(mount, content), True
                case SshMount():
                    if not _agent(mount, draft, number, workshop, held):
                        continue
                    spec, is_file = _socket(draft, number), True
            target: str = mount.target
            spec["target"] = os.fsencode(target)
            out.specs.append(spec)
            targets.append((target, is_file))
        out.points, only_there = _make_points(draft, [*targets, *hidden_points(draft)])
        yield out
        _drop_points(draft, only_there)


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
    mount: SshMount, draft: Draft, number: int, workshop: Workshop, held: contextlib.ExitStack
) -> bool:
    """Make the socket of an agent, if one was given. Raises BuildError where it is required."""
    given = workshop.ssh.get(mount.id)
    if given is None:
        if mount.required:
            raise BuildError(f"unset ssh forward key {mount.id}", f"give it with --ssh {mount.id}")
        return False
    from builder.run.ssh import agent_socket

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
    """Usual mount points that the image does not have, and for which those at the bottom of every overlay
    do not show: a layer has removed the directory, or put a link in its place.
    """
    root = draft.lower().root
    tree = Tree((*(root.folders if root is not None else ()), draft.store.path("mounts")))
    missing = [(path, is_file) for path, is_file in _USUAL if tree.lookup(path, follow=False) is None]
    above = {path: tree.lookup(os.path.dirname(path)) for path, _ in missing}
    return [item for item in missing if (node := above[item[0]]) is None or node.is_dir]


def make_usual_points(draft: Draft) -> str:
    """A layer with the mount points that *draft*'s image hides, relative to the store; "" for none."""
    return _make_points(draft, hidden_points(draft))[0]


def _make_points(draft: Draft, targets: list[tuple[str, bool]]) -> tuple[str, list[str]]:
    """A layer with mount points for the *targets* that the image does not have; its path, and
    the directories that are in it only.
    """
    lower = draft.lower()
    missing = []
    for target, is_file in targets:
        path, node = lower.resolve(target)
        if node is None:
            missing.append((path, is_file))
    if not missing:
        return "", []
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
    return os.path.relpath(top, draft.store.root), only_there


def _drop_points(draft: Draft, only_there: list[str]) -> None:
    """Take out of the step's diff the mount points that it gave another look and left empty.

    The step may have put links in their place: none is followed (SRC-05).
    """
    for part in sorted(only_there, reverse=True):
        above, _, name = part.rpartition("/")
        with contextlib.suppress(OSError), real_folder(draft.upper, above) as folder:
            os.rmdir(name, dir_fd=folder)  # unless it is gone, or no longer empty


def _imitate(lower: Tree, path: str, made: str) -> None:
    """Give a directory over one of the image the looks of that one."""
    node = lower.lookup(path, follow=False)
    if node is None:
        os.utime(made, ns=(MADE_TIME, MADE_TIME))
        return
    set_owner(made, node.found.st_uid, node.found.st_gid)
    os.chmod(made, stat.S_IMODE(node.found.st_mode))
    os.utime(made, ns=(node.found.st_mtime_ns, node.found.st_mtime_ns))


# -- caches --------------------------------------------------------------------------------


def _take_caches(
    mounts: tuple[Mount, ...],
    sources: list[tuple[str, ...]],
    workshop: Workshop,
    held: contextlib.ExitStack,
) -> dict[int, str]:
    """The directory of each cache mount, relative to the store, held until *held* is left.

    Always taken in one order, or two steps with two locked caches could wait for each other.
    """
    wanted = []
    for number, mount in enumerate(mounts):
        if isinstance(mount, CacheMount):
            layers = sources[mount.origin] if mount.origin >= 0 else ()
            wanted.append((cache_name(mount, layers), number, mount, layers))
    found: dict[int, str] = {}
    taken: dict[str, str] = {}
    for name, number, mount, layers in sorted(wanted, key=lambda item: item[:2]):
        if name not in taken:
            taken[name] = _take_cache(name, mount, layers, workshop, held)
        found[number] = taken[name]
    return found


def cache_name(mount: CacheMount, layers: tuple[str, ...]) -> str:
    """A cache is its id, what it began with, and whose it is."""
    text = repr((mount.id, layers, mount.mode, mount.uid, mount.gid))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _take_cache(
    name: str, mount: CacheMount, layers: tuple[str, ...], workshop: Workshop, held: contextlib.ExitStack
) -> str:
    """Lock the cache *name*, or for a private one the first instance of it that nobody uses."""
    instance = 0
    while True:
        relative = f"caches/{name}" + (f".{instance}" if instance else "")
        _ensure(workshop, relative, name, mount, layers)
        try:
            fd = _open_cache(workshop, relative)
        except FileNotFoundError:
            continue  # it was emptied a moment ago
        # Its entries can be in one root only where nothing can be mounted.
        used = not try_lock(fd, shared=mount.sharing == "shared" and workshop.isolation == NAMESPACES)
        if not used and _is_still(fd, workshop, relative):
            held.callback(os.close, fd)
            return relative
        os.close(fd)
        if mount.sharing == "private" and used:
            instance += 1
        else:
            workshop.check()
            time.sleep(_POLL)


def _open_cache(workshop: Workshop, relative: str) -> int:
    return os.open(workshop.store.path(relative), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _is_still(fd: int, workshop: Workshop, relative: str) -> bool:
    """Whether a cache that is locked now has not been emptied, and so replaced, before."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(workshop.store.path(relative)))
    except FileNotFoundError:
        return False


def empty_caches(
    mounts: tuple[Mount, ...], sources: list[tuple[str, ...]] | None, workshop: Workshop
) -> None:
    """Throw away what is in the caches of a RUN that is not to come from the cache, once in a build.

    A cache of somebody's files goes by their layers: *sources*, None while they are not known.
    """
    for mount in mounts:
        if isinstance(mount, CacheMount) and (mount.origin < 0) == (sources is None):
            name = cache_name(mount, sources[mount.origin] if sources else ())
            with workshop.store.making(f"empty-{name}"):
                if name not in workshop.emptied:
                    workshop.emptied.add(name)
                    _empty(workshop, name, mount.sharing)


def _empty(workshop: Workshop, name: str, sharing: str) -> None:
    """Move away every instance of a cache, once nobody uses it; a private one in use is nobody else's."""
    folder = workshop.store.path("caches")
    for found in [item for item in os.listdir(folder) if item.partition(".")[0] == name]:
        relative, told = f"caches/{found}", False
        while True:
            try:
                fd = _open_cache(workshop, relative)
            except FileNotFoundError:
                break
            try:
                if try_lock(fd):
                    aside = workshop.store.temporary()
                    os.rename(os.path.join(folder, found), aside)
                    remove_tree(aside)
                    break
            finally:
                os.close(fd)
            if sharing == "private":
                break
            if not told:
                workshop.sink(Notice("waiting for a cache mount that is to be emptied and is in use"))
                told = True
            workshop.check()
            time.sleep(_POLL)


def _ensure(workshop: Workshop, relative: str, name: str, mount: CacheMount, layers: tuple[str, ...]) -> None:
    """Make a cache that is not there: complete before it has its name."""
    store = workshop.store
    final = store.path(relative)
    if os.path.isdir(final):
        return
    with store.making(relative.replace("/", "-")):  # a rename would replace an empty one that is in use
        if os.path.isdir(final):
            return
        made = store.temporary()
        os.mkdir(made, 0o700)
        fill = workshop.fill_cache if name not in workshop.emptied else None
        if fill is not None and fill(name, made):
            pass
        elif layers:
            copy_tree(tree_of(store, layers), made)
            remove_devices(made)
        set_owner(made, mount.uid, mount.gid)
        os.chmod(made, mount.mode)
        os.rename(made, final)
