"""What the probe reports from a default step (S3, S4; RT-09, RT-11, RT-13, RT-14, RT-25 to RT-27)."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from confinement import UNPRIVILEGED, X86, differences, is_hostile
from modes import EVERY_MODE, NONE, Mode, Reporter, look, overrides, printed, wanted_mounts, wanted_summary

import builder

pytestmark = pytest.mark.e2e


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_probes(mode: Mode, network: str, report: Reporter) -> None:
    """S3: each probe gets the answer that the table has for it."""
    answers = report(mode, network).answers
    assert sum(map(is_hostile, answers)) >= 120
    assert differences(answers, overrides(mode)) == {}


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_probes_of_a_user(mode: Mode, report: Reporter) -> None:
    """USER: the same, and no privileges."""
    answers = report(mode, user="1000:1000").answers
    assert differences(answers, overrides(mode) | UNPRIVILEGED) == {}


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_report(mode: Mode, network: str, report: Reporter) -> None:
    """S4: who a step is, what it sees, what it has been given."""
    assert report(mode, network).summary() == wanted_summary(mode)


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_mount_table(mode: Mode, network: str, report: Reporter) -> None:
    """Nothing but what is meant to be there, and no path of this machine."""
    seen = report(mode, network)
    assert seen.mounts() == wanted_mounts(mode)
    text = json.dumps(seen.data["mounts"])
    places = {mode.pybuild.store, mode.pybuild.work, Path.cwd(), Path.home(), Path(builder.__file__).parent}
    assert not [str(place) for place in places if str(place) in text]


def test_namespaces_of_its_own(mode: Mode, report: Reporter) -> None:
    """All but the one of time, which has nothing in it that is not everybody's."""
    seen = report(mode).data["namespaces"]
    outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in seen}
    shared = {name for name in seen if seen[name] == outside[name]}
    assert shared == {"time", "time_for_children"}


def test_limits_of_a_step(mode: Mode, report: Reporter) -> None:
    """No limit is above that of who builds; a step goes before its builder when memory runs out."""
    import resource

    seen = report(mode).data
    for name, (_soft, hard) in seen["rlimits"].items():
        if number := getattr(resource, f"RLIMIT_{name}", None):
            own = resource.getrlimit(number)[1]
            assert own == resource.RLIM_INFINITY or 0 <= hard <= own, name
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    assert own_score >= 0, "else oom_minus of the table means nothing"
    assert seen["oom_score_adj"] >= own_score + 500


def test_ids_of_a_step(mode: Mode, report: Reporter) -> None:
    """Root's steps have ids that nobody has; a user's have hers, and never another's."""
    seen = report(mode).data
    for kind in ("uid_map", "gid_map"):
        rows = [tuple(map(int, row.split())) for row in seen[kind]]
        if mode.name == "root":
            ((_, outside, count),) = rows
            assert outside >= 1 << 16 and outside + count < 1 << 32
        else:
            assert sum(count for _, _, count in rows) == (65537 if mode.name.endswith("ranges") else 1)


def test_RT_09_release_agent(mode: Mode, report: Reporter) -> None:
    """CVE-2022-0492: no cgroup hierarchy can be mounted, also not in namespaces of the step's making."""
    answers = report(mode).answers
    names = "mount_cgroup mount_cgroup2 unshare_user unshare_cgroup clone_user clone_cgroup clone_all".split()
    assert {answers[name] for name in names} == {errno.EPERM}
    script = "unshare -Urm true && echo ESCAPED; mount -t cgroup -o memory x /mnt && echo ESCAPED; cat /proc/self/cgroup"
    said = look(mode, f"mkdir -p /mnt; {script}")
    assert "ESCAPED" not in said and said.endswith(":/\n")


def test_RT_11_counters_of_others(mode: Mode, report: Reporter) -> None:
    """Interrupts, powercap and throttling tell nothing; what a step may know, it does."""
    answers = report(mode).answers
    for path in (
        "/proc/interrupts",
        "/proc/timer_list",
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ):
        assert answers[f"read {path}"] in (errno.ENODATA, errno.ENOENT, errno.EACCES), path
    assert answers["may read /proc/meminfo"] == answers["may read /sys/devices/system/cpu"] == 0


def test_RT_13_socket_families(mode: Mode, report: Reporter) -> None:
    """CVE-2026-31431: no AF_ALG and no AF_VSOCK, whatever is in the upper half, by either ABI."""
    answers = report(mode).answers
    refused = "socket_alg socket_alg_upper socket_vsock socket_vsock_upper socket_vsock_top".split()
    allowed = "socket_unix socket_inet socket_inet6 socket_netlink socket_packet".split()
    if X86:
        refused += "old_socket_alg old_socket_vsock old_socketcall_alg old_socketcall_vsock".split()
        allowed += ["old_socket_unix"]
    assert {name: answers[name] for name in refused} == dict.fromkeys(refused, errno.EPERM)
    assert {name: answers[name] for name in allowed} == dict.fromkeys(allowed, 0)


def test_RT_14_keys(mode: Mode, report: Reporter) -> None:
    """No keyring can be asked, joined or filled (the caller's key: test_samples)."""
    names = "keyctl_id keyctl_join keyctl_read keyctl_search keyctl_persistent add_key request_key".split()
    assert {report(mode).answers[name] for name in names} == {errno.EPERM}


def test_RT_25_devices_in_a_layer(mode: Mode, tmp_path: Path, report: Reporter) -> None:
    """Nodes that an image brings do not open, as those that a step makes do not."""
    disk = os.stat("/").st_dev
    nodes = {
        "kmsg": (tarfile.CHRTYPE, 1, 11), "zero": (tarfile.CHRTYPE, 1, 5), "mem": (tarfile.CHRTYPE, 1, 1),
        "tty": (tarfile.CHRTYPE, 5, 0), "fuse": (tarfile.CHRTYPE, 10, 229), "loop": (tarfile.BLKTYPE, 7, 0),
        "disk": (tarfile.BLKTYPE, os.major(disk), os.minor(disk)),
    }  # fmt: skip
    base = io.BytesIO()
    with tarfile.open(fileobj=base, mode="w") as tar:
        for name, (kind, major, minor) in nodes.items():
            entry = tarfile.TarInfo(f"nodes/{name}")
            entry.type, entry.devmajor, entry.devminor, entry.mode = kind, major, minor, 0o666
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        twin = tarfile.TarInfo("nodes/twin")
        twin.size, twin.mode = 5, 0o666
        tar.addfile(twin, io.BytesIO(b"twin\n"))
    (mode.pybuild.work / "nodes.tar").write_bytes(base.getvalue())
    mode.pybuild("import", mode.pybuild.work / "nodes.tar", "nodes").ok()
    script = "for n in nodes/*; do /bin/busybox head -c 4 $n > /dev/null 2>&1 && echo $n; done; true"
    context = mode.pybuild.context(f'FROM nodes\nRUN ["/bin/busybox", "sh", "-c", "{script}"]\n')
    done = mode.pybuild(NONE, "--no-cache", context).ok()
    assert printed(done.err) == ["nodes/twin"]
    made = {name: answer for name, answer in report(mode).answers.items() if name.startswith("node ")}
    assert len(made) > 10 and set(made.values()) <= {errno.EPERM, errno.EACCES}


def test_RT_26_shocker(mode: Mode, report: Reporter) -> None:
    """A file handle can be asked for, and not be opened."""
    answers = report(mode).answers
    assert answers["name_to_handle"] == 0
    assert {answers["open_by_handle"], answers["open_by_handle_root"]} == {errno.EPERM}


def test_RT_27_both_abis(mode: Mode, report: Reporter) -> None:
    """What is refused by one entry to the kernel is refused by all of them; libraries can fall back."""
    answers = report(mode).answers
    assert {answer for name, answer in answers.items() if name.startswith("clone3")} == {errno.ENOSYS}
    assert {answer for name, answer in answers.items() if name.startswith("number_")} == {errno.ENOSYS}
    assert not [name for name, answer in answers.items() if answer >= 200], "a probe was killed"
    if X86:
        assert {answer for name, answer in answers.items() if name.startswith("x32_")} == {errno.ENOSYS}
        for name, answer in answers.items():
            native = name.replace("old_", "")
            if name.startswith("old_") and native in answers:
                assert answer == answers[native], name
        assert answers["old_getpid"] == 0
