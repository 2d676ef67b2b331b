"""Every field of every op changes its key, or is on the list of those that must not."""

from __future__ import annotations

from typing import get_args

import pytest

from builder.plan.identity import identity
from builder.plan.ops import (
    CONTEXT,
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
from builder.request import Limits, Sandbox
from cache.digest import DiffId, SnapshotId, digest_of
from cache.keys import derive
from grammar import structs

SAMPLES: list[Op] = [
    FromImage("name", digest_of(b"image"), (DiffId(digest_of(b"layer")),)),
    RunCommand(
        ("a",),
        (("k", "v"),),
        "/",
        "",
        "none",
        "host",
        (("http_proxy", "x"),),
        (Inline("s", "#!/x"),),
        (TmpfsMount("/t", 0),),
        "insecure",
        Sandbox(),
        "s390x",
    ),
    CopyFiles((Picked("a", CONTEXT),), "/b", "1:2", "755", ("x",), True, 1),
    MakeDir("/w", "5", 1),
    Files("key", SnapshotId("snapshot")),
    FetchUrl("http://h/f", "f", "sha256:0"),
    FetchGit("http://h/r.git", "main", "d", "0", False, True, False),
]

# Names only show in messages; a base is its layers; a proxy reaches a step undeclared (T98).
WITHOUT_EFFECT = {("FromImage", "name"), ("FromImage", "image"), ("RunCommand", "proxies")}
WITHOUT_EFFECT |= {("Files", "snapshot")}

CASES = [(op, field) for op in SAMPLES for field in structs.fields(op)]


def other(value: object) -> object:
    """A value of the same type that differs."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, *value)
        case Sandbox():
            return structs.replace(value, no_new_privileges=not value.no_new_privileges)
        case _:
            raise AssertionError(f"how does a {type(value).__name__} differ?")


def test_every_op_has_a_sample() -> None:
    assert {type(op) for op in SAMPLES} == set(get_args(Op))


@pytest.mark.parametrize(("op", "field"), CASES, ids=[f"{type(op).__name__}.{field}" for op, field in CASES])
def test_field(op: Op, field: str) -> None:
    changed = structs.replace(op, **{field: other(getattr(op, field))})
    same = derive(*identity(op)) == derive(*identity(changed))
    assert same is ((type(op).__name__, field) in WITHOUT_EFFECT)


# Where a name leads, and what a step may use, are no part of what it does (T98).
SANDBOX: list[tuple[Sandbox, bool]] = [
    (Sandbox(hosts=(("b", "1.1.1.1"),)), True),
    (Sandbox(hosts=(("a", "2.2.2.2"),)), False),
    (Sandbox(dns=("1.1.1.1",)), True),
    (Sandbox(shm_size=1), True),
    (Sandbox(ulimits=(("nofile", (1, 2)),)), True),
    (Sandbox(cap_add=("chown",)), True),
    (Sandbox(cap_drop=("chown",)), True),
    (Sandbox(devices=(("/dev/null", "/dev/x"),)), True),
    (Sandbox(no_new_privileges=True), True),
    (Sandbox(any_syscall=True), True),
    (Sandbox(system_paths=True), True),
    (Sandbox(limits=Limits(parent="x")), True),
    (Sandbox(hosts=(("a", "1.1.1.1"),), limits=Limits(1, 1, "1", 1)), False),
]


@pytest.mark.parametrize(("sandbox", "changes"), SANDBOX)
def test_sandbox(sandbox: Sandbox, changes: bool) -> None:
    """*changes*: its key is another than that of a step with the host "a"."""
    plain = RunCommand(("a",), (), "/", "", "none", "h", sandbox=Sandbox(hosts=(("a", "1.1.1.1"),)))
    other_one = structs.replace(plain, sandbox=sandbox)
    assert (derive(*identity(plain)) != derive(*identity(other_one))) is changes


ITEMS: list[tuple[Picked | Inline, str]] = [
    (item, field)
    for item in (Picked("a", 0, False, False, ("p",)), Inline("a", "b"))
    for field in structs.fields(item)
]


@pytest.mark.parametrize(("item", "field"), ITEMS, ids=[f"{type(i).__name__}.{f}" for i, f in ITEMS])
def test_field_of_an_item(item: Picked | Inline, field: str) -> None:
    value = getattr(item, field)
    changed = structs.replace(item, **{field: not value if isinstance(value, int) else other(value)})
    one, two = (derive(*identity(CopyFiles((item,), "/"))), derive(*identity(CopyFiles((changed,), "/"))))
    assert one != two


MOUNTS: list[Mount] = [
    BindMount("/t", 0, "/p", True),
    CacheMount("/t", "id", "shared", 0, "/p", True, 0o755, 1, 2),
    TmpfsMount("/t", 5),
    SecretMount("id", "/t", "E", True, 0o400, 1, 2),
    SshMount("id", "/t", True, 0o600, 1, 2),
]
# What a bound path holds, and what a cache begins with, are keys of their own (T98, T99).
MOUNTS_WITHOUT_EFFECT = {
    *(("BindMount", name) for name in ("origin", "path")),
    *(("CacheMount", name) for name in ("id", "sharing", "origin", "path")),
}
MOUNT_CASES = [(mount, field) for mount in MOUNTS for field in structs.fields(mount)]


@pytest.mark.parametrize(
    ("mount", "field"), MOUNT_CASES, ids=[f"{type(m).__name__}.{f}" for m, f in MOUNT_CASES]
)
def test_field_of_a_mount(mount: Mount, field: str) -> None:
    value = getattr(mount, field)
    changed = structs.replace(mount, **{field: not value if isinstance(value, int) else other(value)})
    keys = {
        derive(*identity(RunCommand(("a",), (), "/", "", "none", "h", mounts=(m,)))) for m in (mount, changed)
    }
    assert (len(keys) == 1) is ((type(mount).__name__, field) in MOUNTS_WITHOUT_EFFECT)
