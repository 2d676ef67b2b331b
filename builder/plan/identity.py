"""The fields of each operation that its cache key covers (T94 to T98).

Left out on purpose: RunCommand.proxies (T98), names of images and stages, and everything that only output
shows. A test checks that each field of each operation is in its identity or on that list.
"""

from __future__ import annotations

from typing import assert_never

from builder.plan.ops import (
    BindMount,
    CacheMount,
    CopyFiles,
    FetchGit,
    FetchUrl,
    Files,
    FromImage,
    Inline,
    MakeDir,
    Mount,
    Op,
    Picked,
    RunCommand,
    SecretMount,
    SshMount,
    TmpfsMount,
)
from builder.request import Sandbox


def identity(op: Op) -> tuple[str, dict[str, object]]:
    """Return the kind and the fields that ``cache.keys.derive`` hashes in addition to the step's inputs."""
    match op:
        case FromImage():
            return "image", {"layers": list(op.diff_ids)}
        case Files():
            return "files", {"key": op.key}
        case FetchUrl():  # the request: the keys of steps that use the file cover its content
            return "url", {"url": op.url, "name": op.name, "checksum": op.checksum}
        case FetchGit():
            return "git", {
                "remote": op.remote,
                "ref": op.ref,
                "subdir": op.subdir,
                "checksum": op.checksum,
                "keep_git_dir": op.keep_git_dir,
                "submodules": op.submodules,
                "commit_time": op.commit_time,
            }
        case RunCommand():
            return "run", {
                "argv": list(op.argv),
                "env": [list(pair) for pair in op.env],
                "cwd": op.cwd,
                "user": op.user,
                "network": op.network,
                "hostname": op.hostname,
                **_given(
                    scripts=[_inline(item) for item in op.scripts],
                    mounts=[_mount(mount) for mount in op.mounts],
                    security=op.security,
                    foreign=op.foreign,
                ),
                **_sandbox(op.sandbox),
            }
        case CopyFiles():
            return "copy", {
                "items": [_item(item) for item in op.items],
                "dest": op.dest,
                "chown": op.chown,
                "chmod": op.chmod,
                **_given(exclude=list(op.exclude), link=op.link, epoch=op.epoch),
            }
        case MakeDir():
            return "mkdir", {"path": op.path, "user": op.user, **_given(epoch=op.epoch)}
        case _:
            assert_never(op)


def _sandbox(sandbox: Sandbox) -> dict[str, object]:
    """Return what a command can see of its sandbox; without addresses and resource limits (T98)."""
    return _given(
        hosts=[name for name, _ in sandbox.hosts],
        shm_size=sandbox.shm_size,
        ulimits=[[name, *limits] for name, limits in sandbox.ulimits],
        cap_add=list(sandbox.cap_add),
        cap_drop=list(sandbox.cap_drop),
        devices=[path for _, path in sandbox.devices],
        no_new_privileges=sandbox.no_new_privileges,
        any_syscall=sandbox.any_syscall,
        system_paths=sandbox.system_paths,
        cgroup_parent=sandbox.limits.parent,
    )


def _item(item: Picked | Inline) -> dict[str, object]:
    if isinstance(item, Inline):
        return _inline(item)
    return {
        "pattern": item.pattern,
        "origin": item.origin,
        **_given(literal=item.literal, unpack=item.unpack, parents=list(item.parents), context=item.context),
    }


def _inline(item: Inline) -> dict[str, object]:
    return {"name": item.name, "content": item.content, "mode": item.mode}


def _mount(mount: Mount) -> dict[str, object]:
    """Return the identity of a mount without its content.

    The content of bind mounts enters the key as an input; that of caches and secrets does not (T98).
    """
    match mount:
        case BindMount():
            return {"bind": mount.target, "read_only": mount.read_only}
        case CacheMount():
            owner = [mount.mode, mount.uid, mount.gid]
            metadata = _given(owner=[] if owner == [0o755, 0, 0] else owner)
            return {"cache": mount.target, "read_only": mount.read_only, **metadata}
        case TmpfsMount():
            return {"tmpfs": mount.target, **_given(size=mount.size, read_only=mount.read_only)}
        case SecretMount():
            owner = [mount.mode, mount.uid, mount.gid]
            metadata = _given(owner=[] if owner == [0o400, 0, 0] else owner)
            return {
                "secret": mount.id,
                "target": mount.target,
                "env": mount.env,
                "required": mount.required,
                **metadata,
            }
        case SshMount():
            owner = [mount.mode, mount.uid, mount.gid]
            return {"ssh": mount.id, "target": mount.target, "required": mount.required, "owner": owner}
        case _:
            assert_never(mount)


def _given(**fields: object) -> dict[str, object]:
    """Return *fields* without those that have no value, so that older keys stay valid."""
    return {name: value for name, value in fields.items() if value}
