"""What a step reaches by its network: the internet, and nothing of the machine (RT-20)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import world
from confinement import read_report
from harness import Pybuild
from modes import MODES, NONE, Mode, printed, with_probe
from oci import read_image
from rootless import command

pytestmark = pytest.mark.e2e


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server of this machine on an abstract socket, which has no file whose mode could protect it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0pybuild-probe-canary")
        server.listen(8)
        server.settimeout(0.2)
        yield server


def test_RT_20_abstract_sockets(mode: Mode, probe: Path, listener: socket.socket) -> None:
    """CVE-2020-15257: only a step on the host's network, which the command line gave it, hears them."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\nRUN {}/probe try abstract_socket > /out\n"
    )
    for option, line, wanted in (
        (NONE, "", errno.ECONNREFUSED),
        ("--network=default", "", errno.ECONNREFUSED),
        ("--allow=network.host", "--network=host ", 0),
    ):
        context = with_probe(mode, probe, text.format(line))
        image = mode.pybuild.export(context, option, "--no-cache")
        assert read_report(image.read("out")).answers == {"abstract_socket": wanted}
        if wanted:
            with pytest.raises(TimeoutError):
                listener.accept()
        else:
            listener.accept()[0].close()


@pytest.mark.parametrize("mode", MODES[1:], indirect=True)
def test_RT_20_without_a_carrier(mode: Mode, probe: Path, listener: socket.socket) -> None:
    """Where nothing can connect a user's namespace, the host's network is still not given unasked."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\nRUN {}/probe try abstract_socket > /out\n"
    )
    env = {"PATH": str(_only("", mode.pybuild.work))}
    archive = mode.pybuild.work / "out.tar"
    export = ("--no-cache", "-o", f"type=oci,dest={archive}")
    done = mode.pybuild("--network=default", *export, with_probe(mode, probe, text.format("")), env=env)
    if done.code == 0:  # it may refuse
        answers = read_report(read_image(archive).read("out")).answers
        assert answers == {"abstract_socket": errno.EPERM}  # by Landlock
    asked = with_probe(mode, probe, text.format("--network=host "))
    mode.pybuild("--allow=network.host", NONE, *export, asked, env=env).ok()
    assert read_report(read_image(archive).read("out")).answers == {"abstract_socket": 0}


def test_RT_20_pybuild_has_none(pybuild: Pybuild) -> None:
    """No process of a build listens or waits on an abstract socket."""
    context = pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1000\n")
    words, env = command(pybuild, "--no-cache", "--network=default", context)
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while not build.stderr.readline().endswith(" here\n"):
            assert build.poll() is None
        ours = {link for pid in _family(build.pid) for link in _sockets(pid)}
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        abstract = {row[6] for row in rows if len(row) > 7 and row[7].startswith("@")}
        build.terminate()
        build.stderr.read()
    assert ours and not ours & abstract


def _family(first: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [first]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _sockets(pid: int) -> set[str]:
    """The inode numbers of a process's sockets."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")):
                found.add(match[1])
    return found


def calls(mode: Mode, carrier: str, *closed: str) -> dict[str, str]:
    """What a step on the default network hears at each address of the world that world.py makes."""
    addresses = " ".join((*world.HOST, world.INTERNET, world.METADATA))
    # And the neighbours by IPv6, which are there without being asked for; an address takes up to two seconds to
    # count, and longer on a busy machine.
    counts = "ip -6 addr show dev eth0 | grep fe80 | grep -qv tentative"
    neighbours = (
        f"$(n=0; until {counts} || [ $n = 100 ]; do n=$((n + 1)); sleep 0.1; done; "
        + "ping6 -c 2 -w 3 -I eth0 ff02::1 | sed -n 's/.*from \\(fe80[^ ]*\\): .*/\\1%eth0/p' | sort -u)"
    )
    script = (
        f"for a in {addresses} $(ip route | awk '/default/ {{print $3}}') 10.0.2.2 {neighbours}; do "
        f'(echo "$a=$(timeout 3 nc -w 1 $a {world.PORT} < /dev/null 2> /dev/null)") & done; wait'
    )
    context = mode.pybuild.context("FROM busybox\nCOPY s /s\nRUN sh /s\n", {"s": script})
    env = {"PATH": str(_only(carrier, mode.pybuild.work))} if carrier else None
    words, environment = command(mode.pybuild, "--no-cache", "--network=default", context, env=env)
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, *closed, *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split("=") for line in printed(done.stderr) if "=" in line)


def _only(carrier: str, work: Path) -> Path:
    """A folder of programs in which *carrier* is all that can connect a user's namespace."""
    folder = work / "programs"
    folder.mkdir()
    for name in filter(None, (carrier, "newuidmap", "newgidmap")):
        path = shutil.which(name, path="/usr/bin:/usr/sbin")
        assert path is not None, f"{name} is not installed"
        (folder / name).symlink_to(path)
    return folder


CARRIERS = pytest.mark.parametrize(
    ("mode", "carrier"),
    [("root", ""), *((name, carrier) for name in MODES[1:] for carrier in ("pasta", "slirp4netns"))],
    indirect=["mode"],
)


@pytest.fixture(scope="session")
def heard() -> Callable[[Mode, str], dict[str, str]]:
    """What a step hears from whom; asked once of each kind of network."""
    known: dict[tuple[str, str], dict[str, str]] = {}

    def ask(mode: Mode, carrier: str) -> dict[str, str]:
        if (mode.name, carrier) not in known:
            known[mode.name, carrier] = calls(mode, carrier)
        return known[mode.name, carrier]

    return ask


@CARRIERS
def test_network_leads_to_the_internet(
    mode: Mode, carrier: str, heard: Callable[[Mode, str], dict[str, str]]
) -> None:
    """A service out there hears a step, and no service of the host does, on whichever of its addresses."""
    answers = dict(heard(mode, carrier))
    assert answers.pop(world.INTERNET) == world.INTERNET
    assert any(at.startswith("fe80") for at in answers), "IPv6 was not tried"
    assert {at: said for at, said in answers.items() if said and at != world.METADATA} == {}


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_behind_a_closed_filter(mode: Mode) -> None:
    """Where docker or ufw has the machine forward for nobody, steps still reach the internet, and only that."""
    answers = calls(mode, "", "--closed")
    assert answers.pop(world.INTERNET) == world.INTERNET
    assert {at: said for at, said in answers.items() if said} == {}


NEIGHBOURS = r"""
own=$(ip -4 addr show dev eth0 | sed -n 's/.*inet 10\.213\.0\.\([0-9]*\).*/\1/p')
other=10.213.0.$((5 - own))
n=0; until ip -6 addr show dev eth0 | grep fe80 | grep -qv tentative || [ $n = 50 ]; do n=$((n + 1)); sleep 0.1; done
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
echo "ipv6=$(ping6 -c 2 -W 1 -I eth0 ff02::1 | sed -n 's/.*from \(fe80[^ ]*\):.*/\1/p' | sort -u | wc -l)"
arping -q -c 1 -w 1 -I eth0 $other && echo "arp=answered"
ping -q -c 1 -W 1 $other > /dev/null && echo "ipv4=answered"
ping -q -c 1 -W 1 $1 > /dev/null && echo "outside=$own"
ip addr add $other/32 dev eth0
arping -q -U -c 1 -w 1 -I eth0 -s $other $other
ping -q -c 1 -W 1 -I $other $1 > /dev/null && echo "stolen=answered"
sleep 1
"""


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_of_steps_at_once(mode: Mode) -> None:
    """None hears another, or gets what is meant for it; and packets are as long as the machine's way out."""
    text = "FROM busybox AS one\nCOPY s /s\nRUN sh /s {0}\nFROM busybox AS two\nCOPY s /s\nRUN sh /s {0} 2\n"
    text += "FROM one\nCOPY --from=two /etc/passwd /x\n"
    context = mode.pybuild.context(text.format(world.INTERNET), {"s": NEIGHBOURS})
    options = ("--no-cache", "--network=default", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW")
    words, environment = command(mode.pybuild, *options, context)
    shorter = ["sh", "-ec", 'ip link set up0 mtu 1400; exec "$@"', "sh"]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, *shorter, *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in printed(done.stderr) if "=" in line)
    assert said == ["ipv6=1", "ipv6=1", "mtu=1400", "mtu=1400", "outside=2", "outside=3"]


@pytest.mark.parametrize("way", ["--ipv6", "--only-ipv6"])
@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_by_ipv6(mode: Mode, way: str) -> None:
    """Where the machine has it, steps do: to the internet, and to no service of the machine, nor another's step."""
    asked = (world.INTERNET6, world.HOST6, world.METADATA6, "fdb1:9d0e:7a60:2::1", "fdb1:9d0e:7a60:3::2")
    script = f"""
        for a in {" ".join(asked)}; do
            (echo "$a=$(timeout 3 nc -w 1 $a {world.PORT} < /dev/null 2> /dev/null)") & done; wait
        ip -6 addr add fdb1:9d0e:7a60:77::2/64 dev eth0 nodad
        ping6 -q -c 1 -W 1 -I fdb1:9d0e:7a60:77::2 {world.INTERNET6} > /dev/null && echo forged=answered
        true
    """
    context = mode.pybuild.context("FROM busybox\nCOPY s /s\nRUN sh /s\n", {"s": script})
    options = ("--no-cache", "--network=default", "--cap-add=NET_ADMIN")
    words, environment = command(mode.pybuild, *options, context)
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, way, "--closed", *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = dict(line.split("=") for line in printed(done.stderr) if "=" in line)
    assert answers.pop(world.INTERNET6) == world.INTERNET6, done.stderr
    assert len(answers) == 4 and not any(answers.values()), answers


@pytest.mark.parametrize("mode", MODES[1:], indirect=True)
@pytest.mark.parametrize("carrier", ["pasta", "slirp4netns"])
def test_user_without_a_network(mode: Mode, carrier: str) -> None:
    """A machine that is connected to nothing builds what needs nothing, and the build says what is missing."""
    context = mode.pybuild.context("FROM busybox\nRUN echo one\nRUN echo two\n")
    env = {"PATH": str(_only(carrier, mode.pybuild.work))}
    words, environment = command(mode.pybuild, "--no-cache", "--network=default", context, env=env)
    done = subprocess.run(
        ["unshare", "--net", *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = printed(done.stderr)
    assert [line for line in said if "warning" not in line] == ["one", "two"]
    if carrier == "pasta":  # the other one connects a namespace to nothing without a word
        assert len([line for line in said if "steps reach nothing outside: pasta could not" in line]) == 1


@CARRIERS
def test_metadata_service(mode: Mode, carrier: str, heard: Callable[[Mode, str], dict[str, str]]) -> None:
    """What a cloud tells its machines, keys among it, is told to no step."""
    answers = heard(mode, carrier)
    assert answers[world.INTERNET] == world.INTERNET and answers[world.METADATA] == ""
