"""The lists of operations: what is in them, in which order, and how they are printed."""

from __future__ import annotations

import pytest

from builder.runtime.container import operations as op
from builder.runtime.container.describe import describe
from builder.runtime.container.order import chroot_operations, frame_operations, step_operations
from builder.runtime.isolation import WAYS, operations_of
from builder.runtime.spec import CAP_SYS_CHROOT, CAPABILITIES, ContainerSpec, FrameSpec, MountSpec


def frame(**changes: object) -> FrameSpec:
    made = FrameSpec(network="none", masked=True, devices={}, shm_size=1 << 20, limits={}, cgroup_parent=b"")
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def spec(**changes: object) -> ContainerSpec:
    made = ContainerSpec(
        frame=frame(),
        lowers=[b"snapshots/a"],
        upper=b"tmp/x/fs",
        work=b"tmp/x/work",
        argv=[b"/bin/sh", b"-c", b"true"],
        env={b"TOKEN": b"secret value"},
        cwd=b"/",
        user=b"",
        hostname=b"host",
        files={b"/etc/hosts": b"127.0.0.1"},
        scripts={},
        mounts=[],
        volumes=[],
        capabilities=CAPABILITIES,
        filtered=True,
        any_socketcall=False,
        no_new_privileges=False,
        rlimits={},
        address=[],
        placed=[],
        not_before=0,
        devices_work=True,
    )
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def kinds(operations: object) -> list[type]:
    assert isinstance(operations, list)
    return [type(operation) for operation in operations]


def test_step() -> None:
    """The filter is read before the root is entered, and installed after all that it refuses."""
    assert kinds(step_operations(spec())) == [
        op.Undumpable,
        op.ReadFilter,
        op.EnterStore,
        op.Root,
        op.Cover,
        *[op.MoveIn] * 3,
        op.FindUser,
        op.Hostname,
        op.PivotRoot,
        op.Descriptors,
        op.WorkingDirectory,
        op.Limit,
        op.InstallFilter,
        op.Identity,
        op.WaitForClock,
        op.Execute,
    ]


def test_unfiltered() -> None:
    """No seccomp filter, and an outer network by which abstract sockets would be in reach."""
    found = kinds(step_operations(spec(filtered=False, frame=frame(network="shared"))))
    assert op.ReadFilter not in found and op.InstallFilter not in found
    assert op.HideAbstractSockets in found


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("network", ["none", "default", "host", "shared"])
def test_frame(masked: bool, network: str) -> None:
    found = frame_operations(frame(masked=masked, network=network))
    own = network in ("none", "default")
    assert (op.Mask(b"proc/kcore", "always") in found) == masked
    assert (op.ReadOnly(b"proc/sys") in found) == masked
    assert op.Sysfs(own) in found and (op.Loopback() in found) == own
    assert kinds(found)[:3] == [op.Isolate, op.NewProc, op.Staging]


def test_given_device() -> None:
    """A device that the command line names takes the place of the usual one."""
    found = frame_operations(frame(devices={b"/dev/null": b"/dev/zero", b"/dev/fuse": b"/dev/fuse"}))
    assert [item.target for item in found if isinstance(item, op.GivenDevice)] == [b"dev/null", b"dev/fuse"]
    assert b"dev/null" not in [item.target for item in found if isinstance(item, op.Device)]


def test_mounts() -> None:
    mounts = [
        MountSpec(kind="tmpfs", target=b"/t", size=0, read_only=False),
        MountSpec(kind="store", target=b"/c", path=b"caches/1", source=b"/", read_only=False),
        MountSpec(kind="bind", target=b"/b", lowers=[b"snapshots/b"], source=b"/s", read_only=True),
        MountSpec(kind="file", target=b"/run/secret", content=b"hidden", mode=0o400, uid=0, gid=0),
    ]
    found = step_operations(spec(mounts=mounts))
    assert op.Tmpfs(b"/t", 0, False) in found
    assert op.Bind(b"/c", b"caches/1", b"/", False) in found
    assert op.Overlay(b"/b", b"/s", [b"snapshots/b"], b"", b"", True) in found
    assert "hidden" not in describe(
        found
    ) and "File target=/run/secret content=6 bytes mode=0400" in describe(found)


def test_no_values_are_printed() -> None:
    text = describe(step_operations(spec()))
    assert "secret value" not in text and "env=TOKEN" in text
    assert "Cover path=/etc/hosts content=9 bytes" in text.splitlines()
    assert "Root lowers=[snapshots/a] upper=tmp/x/fs work=tmp/x/work" in text.splitlines()


@pytest.mark.parametrize("chroots", [True, False])
def test_chroot(chroots: bool) -> None:
    """chroot(2) passes only if the step has the capability for it."""
    capabilities = CAPABILITIES if chroots else CAPABILITIES & ~CAP_SYS_CHROOT
    found = chroot_operations(spec(capabilities=capabilities), CAPABILITIES)
    assert op.Listen(False, False, chroots) in found
    assert kinds(found)[-2:] == [op.WaitForClock, op.Execute]


@pytest.mark.parametrize("isolation", WAYS)
def test_every_way_is_printed(isolation: str) -> None:
    way = next(way for way in WAYS if way == isolation)
    for operations in operations_of(way, spec()):
        assert len(describe(operations).splitlines()) == len(operations)


def test_operations_are_values() -> None:
    assert op.Limit(4, 0, 0) == op.Limit(4, 0, 0) != op.Limit(4, 0, 1)
    assert repr(op.MoveIn(b"dev")) == "MoveIn(name=b'dev')"
    with pytest.raises(ValueError, match="zip"):
        op.Limit(4)  # type: ignore[call-arg]
