"""Options of the sandbox, limits, builds without root and in containers, and what says so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemons import LIMITS, dockerd, remove_cgroups
from harness import PROCESS, PYBUILD, Pybuild, Tree, remove_cgroup
from oci import Image
from places import opened
from rootless import Installation, Rootless, command

from cache.layer.landlock import confined

pytestmark = pytest.mark.e2e

NONE = "--network=none"
ROOT = Path(__file__).resolve().parents[2]


def step(pybuild: Pybuild, command: str, *options: str) -> str:
    """What a RUN step prints."""
    done = pybuild(NONE, "--no-cache", *options, pybuild.context(f"FROM busybox\nRUN {command}\n")).ok()
    return "\n".join(re.findall(r"^#\d+ \d+\.\d+ (.*)$", done.err, re.MULTILINE))


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "command", "expected"),
    [
        ("--add-host=db:10.0.0.7 --add-host=six=::1", "tail -2 /etc/hosts", "10.0.0.7\tdb\n::1\tsix"),
        ("--dns=10.1.2.3 --dns=10.1.2.4", "cat /etc/resolv.conf", "nameserver 10.1.2.3\nnameserver 10.1.2.4"),
        ("--shm-size=10m", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "10240"),
        ("--ulimit=nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"),
        ("--ulimit=core=-1", "ulimit -c", "unlimited"),
        ("--cap-drop=ALL", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
        ("--cap-drop=all --cap-add=CAP_CHOWN", "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000001"),
        ("--cap-add=net_admin", "ip link set lo mtu 1000 && cat /sys/class/net/lo/mtu", "1000"),
        ("--security-opt=no-new-privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
        ("--security-opt=seccomp=unconfined", "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
        ("--device=/dev/fuse", "ls /dev/fuse && exec 3<>/dev/fuse && echo open", "/dev/fuse\nopen"),
        ("--device=/dev/null:/dev/a/b/c --device=/dev/zero:/dev/a/d", "cd /dev/a && echo b/* d", "b/c d"),
        ("--device=/dev/null:/dev/other", "echo x > /dev/other && ls -l /dev/other | cut -c1-10", "crw-rw-rw-"),
    ],
)  # fmt: skip
def test_option(pybuild: Pybuild, options: str, command: str, expected: str) -> None:
    assert step(pybuild, command, *options.split()) == expected


def test_system_paths(pybuild: Pybuild) -> None:
    """What is hidden shows when the command line says so, and is not writable for that."""
    count = "wc -l < /proc/interrupts"
    assert step(pybuild, count) == "0"
    assert int(step(pybuild, count, "--security-opt=systempaths=unconfined")) > 1


NO_SENSE = """
    --memory=1m --memory=x --cpus=0 --cpus=-1 --cpuset-cpus=a --pids-limit=0 --pids-limit=1.5 --shm-size=1q
    --cap-add=nothing --cap-drop=sys --security-opt=seccomp=/p.json --security-opt=x --device=/etc/passwd
    --device=/dev/nothing --device=/dev/null:/etc/x --device=/dev/null:/dev/x:r --add-host=x --add-host=x:y
    --add-host=../x:1.1.1.1 --dns=x --ulimit=x=1 --ulimit=nofile --ulimit=nofile=9:1 --ulimit=nofile=x
    --cgroup-parent=../x --cgroup-parent=a/../b --ulimit=nofile=1_0 --ulimit=nofile=٣ --shm-size=99999999999999t
    --device=/dev/null:/dev/pts --device=/dev/null:/dev/shm/x --device=/dev/null:/dev/../dev/fd
"""
WITH_BLANKS = ("--ulimit=nofile= 1", "--dns=fe80::1%\nsearch evil", "--add-host=a:fe80::1%\n1.1.1.1 b")


@pytest.mark.parametrize("option", [*NO_SENSE.split(), *WITH_BLANKS, f"--device=/dev/null:/dev/{'x' * 256}"])
def test_option_that_makes_no_sense(pybuild: Pybuild, option: str) -> None:
    pybuild(option, pybuild.context("FROM busybox\nRUN true\n")).failed(2)


def test_devices_at_one_place(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM busybox\nRUN true\n")
    for one, other in (("/dev/a", "/dev/a"), ("/dev/a", "/dev/a/b"), ("/dev/a/b", "/dev/a")):
        both = f"--device=/dev/null:{one}", f"--device=/dev/zero:{other}"
        assert "another device" in pybuild(*both, context).failed(2).err


def test_options_and_the_cache(pybuild: Pybuild) -> None:
    """T98: what a command can see of them is part of its key; addresses and limits are not."""
    context = pybuild.context("FROM busybox\nRUN echo keys\n")
    pybuild(NONE, "--add-host=a:1.1.1.1", "--no-cache", context).ok()
    same = ("--add-host=a:2.2.2.2", "--dns=1.1.1.1", "--memory=1g", "--cpus=1", "--pids-limit=100")
    assert pybuild(NONE, *same, context).ok().executed == 0
    for other in ("--add-host=b:1.1.1.1", "--ulimit=nofile=100", "--cap-drop=ALL", "--shm-size=1m"):
        assert pybuild(NONE, "--add-host=a:1.1.1.1", other, context).ok().executed == 1


def test_run_takes_them_too(pybuild: Pybuild) -> None:
    done = pybuild(
        "run", NONE, "--cap-drop=ALL", "--memory=100m", "busybox", "grep", "CapEff", "/proc/self/status"
    )
    assert done.ok().out == "CapEff:\t0000000000000000\n"


FILL = """awk 'BEGIN {{ s = "x"; while (length(s) < {}000000) s = s s; print length(s) }}'"""
MANY = "sh -c 'for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo all'; true"


# -- limits --------------------------------------------------------------------------------


def test_memory(pybuild: Pybuild) -> None:
    """The kernel ends what takes too much, and the error says which limit it was; less is fine."""
    text = f"FROM busybox\nRUN {FILL.format(60)}\n"
    said = pybuild(NONE, "--no-cache", "--memory=20m", pybuild.context(text)).failed().err
    assert "memory limit of 20 MiB (--memory) was used up" in said and "raise the limit" in said
    done = pybuild(NONE, "--no-cache", "--memory=200m", pybuild.context(text)).ok()
    assert re.search(r"DONE .* \(CPU \d+\.\ds, memory \d{2,3} MB\)", done.err)


def test_processes(pybuild: Pybuild) -> None:
    assert "can't fork" in step(pybuild, MANY, "--pids-limit=5")
    assert step(pybuild, MANY, "--pids-limit=50") == "all"


def test_processors(pybuild: Pybuild) -> None:
    loop = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; times | head -1"
    started = time.monotonic()
    step(pybuild, loop)
    free = time.monotonic() - started
    started = time.monotonic()
    step(pybuild, loop, "--cpus=0.1")
    assert time.monotonic() - started > 3 * free
    assert step(pybuild, "grep Cpus_allowed_list /proc/self/status", "--cpuset-cpus=0").endswith("\t0")


def test_limit_that_cannot_be_set(pybuild: Pybuild) -> None:
    """It is refused where it was asked for, and says on what."""
    said = (
        pybuild(NONE, "--no-cache", "--cpuset-cpus=900", pybuild.context("FROM busybox\nRUN true\n"))
        .failed()
        .err
    )
    assert "cpuset" in said and "900" in said


def test_cgroup_parent(pybuild: Pybuild) -> None:
    """A group that somebody has limited limits what is put below it."""
    parent = next(
        place / f"pybt-{PROCESS}"
        for place in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
        if (place / "cgroup.procs").exists()
    )
    parent.mkdir()
    try:
        (parent / "pids.max").write_text("5")
        assert "can't fork" in step(pybuild, MANY, f"--cgroup-parent={parent.name}")
    finally:
        remove_cgroup(parent)
        for place in Path("/sys/fs/cgroup").glob(f"*/{parent.name}"):
            remove_cgroup(place)


def test_metadata_file(pybuild: Pybuild) -> None:
    """What came out, and what each step took; written again by a build that was cached."""
    context = pybuild.context(f"FROM busybox\nRUN {FILL.format(20)}\n")
    path = pybuild.work / "metadata.json"
    for cached in (False, True):
        image = pybuild(NONE, "-q", "-t", "meta", "--metadata-file", path, context).ok().out.strip()
        value = json.loads(path.read_text())
        assert value["containerimage.config.digest"] == image
        assert value["image.name"] == "docker.io/library/meta:latest"
        last = value["pybuild.steps"][-1]
        assert last["name"].startswith("[2/2] RUN awk") and last["cached"] is cached
        if not cached:
            assert last["peak_memory_bytes"] > 10e6 and last["cpu_seconds"] >= 0 and last["seconds"] > 0


def test_killed_build_is_swept(fresh: Pybuild) -> None:
    """What the kill of builder and launcher left of cgroups and networks, the next build removes: the
    census after each test sees that.
    """
    context = fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1000\n")
    build = subprocess.Popen(
        [PYBUILD, context], env=fresh.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert build.stderr is not None
    while not build.stderr.readline().endswith(" here\n"):
        pass
    store = f"PYBUILD_ROOT={fresh.store}\0".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended, or is the kernel's
            if entry.name.isdigit() and store in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    build.communicate(timeout=20)
    fresh("--network=default", fresh.context("FROM busybox\nRUN echo fine > /f\n")).ok()


# -- Landlock ------------------------------------------------------------------------------


def test_landlock(tmp_path: Path) -> None:
    """A write outside of the folder is refused by the kernel; inside, and outside of it all, it is not."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "old").write_text("old")

    def tries() -> list[str]:
        said = []
        for name, attempt in ATTEMPTS.items():
            try:
                attempt(outside)
                said.append(name)
            except PermissionError:
                pass
            except OSError as error:
                assert error.errno == 18, error  # EXDEV: a link would get more rights
        (inside / "new").write_text((outside / "old").read_text())
        return said

    assert confined([str(inside)], tries) == []
    assert (outside / "old").read_text() == "old" and os.listdir(outside) == ["old"]
    assert (inside / "new").read_text() == "old"
    (outside / "new").write_text("this thread may")
    with pytest.raises(ZeroDivisionError):
        confined([str(inside)], lambda: 1 // 0)


def _touch(folder: Path) -> None:
    if subprocess.run(["touch", folder / "t"], check=False, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError


ATTEMPTS: dict[str, Callable[[Path], object]] = {
    "create": lambda folder: (folder / "x").write_text("x"),
    "open to write": lambda folder: (folder / "old").write_text("x"),
    "append": lambda folder: (folder / "old").open("a"),
    "truncate": lambda folder: os.truncate(folder / "old", 0),
    "unlink": lambda folder: (folder / "old").unlink(),
    "mkdir": lambda folder: (folder / "d").mkdir(),
    "symlink": lambda folder: (folder / "l").symlink_to("x"),
    "link": lambda folder: (folder / "h").hardlink_to(folder.parent / "in"),
    "rename": lambda folder: (folder / "old").rename(folder / "other"),
    "mkfifo": lambda folder: os.mkfifo(folder / "p"),
    "mknod": lambda folder: os.mknod(folder / "n", 0o600 | 0o020000, 0),
    "a program": _touch,
}


# -- without root --------------------------------------------------------------------------

APPLICATION = """FROM busybox AS build
COPY --chown=1000:1000 src /src
RUN --mount=type=cache,target=/cache mkdir /out && cp -a /src/a /out/ && chmod 4755 /out/a && echo x > /cache/x \
    && ln /out/a /out/b && ln -s a /out/l && touch -d @1000000000 /out/a /out /src && rm /bin/ls
USER 1000:50
RUN --mount=type=secret,id=s,uid=1000 --mount=type=tmpfs,target=/t test "$(cat /run/secrets/s)" = 1 && touch /t/x
USER 0
RUN chown -h 7:8 /out/l && touch -h -d @1000000000 /out/l /out
FROM scratch
COPY --from=build /out /app/
COPY --from=build --chown=5:6 /src/d /d
ENV a=1
WORKDIR /w
"""
FILES: Tree = {"src": {"a": "#!/bin/sh\n", "d": {"f": "1"}}}


@pytest.fixture
def users(installation: Installation, busybox: Path) -> Iterator[tuple[Rootless, Rootless]]:
    """The command for a user with ranges of ids, and for one without."""
    made = []
    for user in (installation.ranges, installation.single):
        pybuild = installation.pybuild(user, "sandbox", "sandbox-store")
        if not pybuild.store.exists():
            (pybuild.work / "busybox.tar").write_bytes(busybox.read_bytes())
            pybuild("load", pybuild.work / "busybox.tar").ok()
        made.append(pybuild)
    yield made[0], made[1]


def application(pybuild: Pybuild, *options: str) -> Image:
    """Build the application; equal contexts have equal times."""
    context = pybuild.context(APPLICATION, FILES)
    subprocess.run(["find", context, "-exec", "touch", "-hd", "@1500000000", "{}", "+"], check=True)
    (pybuild.work / "s").write_text("1")
    epoch = ("--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    return pybuild.export(
        context, NONE, "--no-cache", *epoch, f"--secret=id=s,src={pybuild.work}/s", *options
    )


def test_same_image_by_everybody(pybuild: Pybuild, users: tuple[Rootless, Rootless]) -> None:
    """Root, a user with ranges, and this again with steps that have overlays of nothing, byte for byte."""
    by_root = application(pybuild)
    by_user = application(users[0])
    assert by_user.manifest == by_root.manifest and by_user.config == by_root.config
    assert (by_root.root()["app/l"][0].uid, by_root.root()["app/l"][0].gid) == (7, 8)


def test_single_id(users: tuple[Rootless, Rootless]) -> None:
    """Owners that a COPY gives reach the image, those of chown do not, and it says so once."""
    user = users[1]
    text = "FROM busybox\nRUN chown 5:6 /bin && touch /x && chown 7 /x && id -u\nCOPY --chown=5:6 f /f\n"
    archive = user.work / "o.tar"
    done = user(NONE, "--no-cache", "-o", archive, user.context(text, {"f": "1"})).ok()
    assert done.err.count("this user has one id") == 1
    assert done.err.count("what steps use cannot be limited here") == 1
    from oci import read_image

    root = read_image(archive).root()
    assert (root["f"][0].uid, root["f"][0].gid) == (5, 6) and root["x"][0].uid == 0
    said = user(NONE, user.context("FROM busybox\nUSER 1000\nRUN id\n")).failed().err
    assert "USER 1000:0: this build has no such id" in said


def test_single_id_and_apt(users: tuple[Rootless, Rootless]) -> None:
    """apt wants to become its own user, which nobody is there for: the remedy is known."""
    apt = "#!/bin/sh\nexit 100\n"
    said = [
        user(NONE, user.context("FROM busybox\nCOPY apt-get /bin/\nRUN chmod 755 /bin/apt-get; apt-get update\n",
                                {"apt-get": apt})).failed().err
        for user in users
    ]  # fmt: skip
    assert ["APT::Sandbox::User=root" in text for text in said] == [False, True]


def test_single_id_takes_an_owner_back(users: tuple[Rootless, Rootless]) -> None:
    """Files do not show there whose they are, so that equal ones are copied again."""
    single = users[1]
    text = "FROM busybox\nCOPY --chown=5:6 d /d\nCOPY d /d\n"
    layers = single.export(single.context(text, {"d": {"f": "1"}}), NONE).layers
    assert [layer.entries["d/f"].uid for layer in layers[-2:]] == [5, 0]


def test_single_id_that_becomes_many(users: tuple[Rootless, Rootless]) -> None:
    """A store whose layers have lost their owners gives nothing to who has more ids, nor the other way round."""
    ranges, single = users
    text = "FROM scratch\nCOPY --chown=5:6 f /f\n"
    single(NONE, single.context(text, {"f": "1"})).ok()
    for mine, other, had in ((ranges, single, "one id"), (single, ranges, "more ids")):
        other(NONE, other.context(text, {"f": "1"})).ok()
        copied = Path(mine.user.home, f"copied{had[:1]}")
        subprocess.run(["cp", "-a", other.store, copied], check=True)
        os.chown(copied, mine.user.uid, mine.user.gid)
        for folder, names, files in os.walk(copied):
            for name in (*names, *files):
                if os.lstat(os.path.join(folder, name)).st_uid == other.user.uid:
                    os.lchown(os.path.join(folder, name), mine.user.uid, mine.user.gid)
        said = replace(mine, store=copied)(NONE, mine.context(text, {"f": "1"})).failed().err
        assert f"was made with {had}" in said


def test_owner_out_of_range(users: tuple[Rootless, Rootless]) -> None:
    said = (
        users[0](NONE, users[0].context("FROM busybox\nCOPY --chown=70000 f /f\n", {"f": "1"})).failed().err
    )
    assert "owner 70000:70000 is not among the ids that this user has" in said and "/etc/subuid" in said


def test_store_of_a_user(users: tuple[Rootless, Rootless]) -> None:
    """It is the user's own, and nobody else gets in."""
    for user in users:
        assert user.store.stat().st_uid == user.user.uid and user.store.stat().st_mode & 0o777 == 0o700


def test_cached_without_a_namespace(users: tuple[Rootless, Rootless]) -> None:
    """A build in which nothing changed is answered as it is for root."""
    user = users[0]
    context = user.context("FROM busybox\nRUN echo cached\n")
    user(NONE, context).ok()
    log = user.work / "strace"
    log.touch()
    os.chown(log, user.user.uid, user.user.gid)
    traced = user.command(NONE, context)
    at = traced.index("setpriv")
    subprocess.run(
        [*traced[:at], "strace", "-f", "-o", log, "-e", "trace=unshare,clone3,execve", *traced[at:]],
        check=True, capture_output=True, cwd=user.work,
    )  # fmt: skip
    assert "unshare(" not in log.read_text() and "CACHED" in user(NONE, context).ok().err


IN_A_NAMESPACE = """
import os, sys
from builder.runtime import probe, syscalls
ready, go = os.pipe()
pid, _pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER)
if pid:
    probe.write_maps(pid, True)
    os.write(go, b"1")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.read(ready, 1)
with open("/proc/sys/user/max_user_namespaces", "w") as file:  # of this namespace alone
    file.write("0")
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_no_user_namespaces(users: tuple[Rootless, Rootless]) -> None:
    """One message says what is missing and how to get it."""
    user = users[0]
    command = user.command(NONE, user.context("FROM busybox\nRUN true\n"))
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NAMESPACE, *command],
        capture_output=True, text=True, check=False, cwd=user.work, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "user.max_user_namespaces" in done.stderr


@pytest.mark.parametrize("first", ["root", "namespace"])
def test_root_of_a_small_namespace(fresh: Pybuild, first: str) -> None:
    """What a root of one id found out on root's store is not believed by root itself, nor the other way round."""
    context = fresh.context("FROM busybox\nRUN cat /proc/self/uid_map\n")

    def build(*prefix: str) -> str:
        words, env = command(fresh, NONE, "--no-cache", context)
        done = subprocess.run(
            [*prefix, *words], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr
        return done.stderr

    if first == "namespace":
        build("unshare", "-Ur")
    said = build()
    assert "this machine's own root" not in said and f" {1 << 31} " in said
    said = build("unshare", "-Ur")
    assert "this user has one id" in said or "owners would be wrong" in said


def test_no_user_namespaces_for_root(fresh: Pybuild) -> None:
    """Root, too, needs them; what to change is said."""
    context = fresh.context("FROM scratch\nCOPY f /f\n", {"f": "1"})
    for words in ((NONE, context), ("doctor",)):
        line, env = command(fresh, *words)
        script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
        done = subprocess.run(
            ["unshare", "-Ur", "sh", "-c", script, "sh", *line],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "user.max_user_namespaces" in done.stdout + done.stderr


# -- copies --------------------------------------------------------------------------------


@pytest.fixture
def odd_store(tmp_path: Path, busybox: Path) -> Iterator[Pybuild]:
    """A store on a file system that can be neither mounted with mapped ids nor the upper of an overlay."""
    behind, before = tmp_path / "behind", tmp_path / "before"
    behind.mkdir()
    before.mkdir()
    subprocess.run(["bindfs", "-o", "dev,suid,allow_other", behind, before], check=True)
    made = Pybuild(before / "store", tmp_path)
    try:
        made("load", busybox).ok()
        yield made
    finally:
        subprocess.run(["umount", before], check=True)


def test_without_overlayfs(odd_store: Pybuild, pybuild: Pybuild) -> None:
    """Steps have copies then, and the image is the same."""
    text = (
        "FROM busybox\nRUN echo 1 > /a && rm /bin/ls && mkdir /q && chmod 700 /var\n"
        "RUN --mount=target=/m/n --mount=type=cache,target=/c --mount=type=bind,from=busybox,source=/etc,target=/e,rw "
        "cat /m/n/f > /b && touch /c/x /e/x && rm -r /q && echo x > /bin/ls && touch -d @1 /b /bin/ls\n"
    )
    files: Tree = {"f": "1"}
    images = [made.export(made.context(text, files), NONE, "--no-cache") for made in (odd_store, pybuild)]
    assert images[0].tree() == images[1].tree()
    assert [layer.names for layer in images[0].layers] == [layer.names for layer in images[1].layers]
    rows = json.loads(odd_store("doctor", "--json").out)
    assert {row["name"]: row["works"] for row in rows}["overlayfs"] == "limited"


def test_RT_25_copies_follow_no_link(odd_store: Pybuild, pybuild: Pybuild, tmp_path: Path) -> None:
    """SRC-05: where steps have copies, links of the image and of steps make and remove nothing outside."""
    outside = tmp_path / "outside"
    for path in (outside / "empty", outside / "n"):
        path.mkdir(parents=True)
    before = sorted(outside.iterdir())
    link = f"ln -s {outside}"
    bound = "RUN --mount=type=tmpfs,target=/m/n true\n"
    texts = [
        f"FROM busybox\nRUN {link} /m\n{bound}",  # made by an image
        f"FROM busybox\nRUN --mount=type=tmpfs,target=/m/n mv /m /gone; {link} /m; true\n",  # by the step itself
        f"FROM busybox\nRUN rm -r /etc && {link} /etc\nRUN true\n",
    ]
    for text in texts:
        images = [made(NONE, "--no-cache", made.context(text)) for made in (odd_store, pybuild)]
        assert images[0].code == images[1].code, images[0].err + images[1].err
        assert sorted(outside.iterdir()) == before
    assert odd_store(NONE, odd_store.context(texts[1])).ok()


def test_hard_links_in_copies(odd_store: Pybuild, pybuild: Pybuild) -> None:
    """As overlayfs does: what writes to one name of a file of the image leaves its other names alone."""
    text = "FROM busybox\nRUN echo 1 > /a && ln /a /b && ln /a /c\nRUN echo 2 >> /a && chmod 600 /b\n"
    images = [made.export(made.context(text), NONE, "--no-cache") for made in (odd_store, pybuild)]
    assert images[0].tree() == images[1].tree()
    assert images[0].layers[-1].names == images[1].layers[-1].names == ["a", "b"]


# -- doctor --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/proc/store", "/dev/null/store", "unwritable/store"])
def test_doctor_where_no_store_can_be(pybuild: Pybuild, place: str, tmp_path: Path) -> None:
    if place.startswith("unwritable"):
        place = str(tmp_path / place)
        Path(place).parent.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", Path(place).parent], check=True)
    try:
        done = replace(pybuild, store=Path(place))("doctor", "--json")
    finally:
        if place.startswith(str(tmp_path)):
            subprocess.run(["umount", Path(place).parent], check=True)
    assert done.code == 1 and not done.err
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["store"]["works"] == "no" and "--root" in rows["store"]["advice"]
    assert rows["seccomp"]["works"] == "yes"


def test_doctor(pybuild: Pybuild, users: tuple[Rootless, Rootless]) -> None:
    """On this machine all works for root and nearly all for users; each row says what to do else."""
    rows = {row["name"]: row for row in json.loads(pybuild("doctor", "--json").ok().out)}
    for name in ("overlayfs", "mounts with mapped ids", "network", "seccomp", "Landlock", "limits"):
        assert rows[name]["works"] == "yes", rows[name]
    shown = pybuild("doctor").ok().out
    assert all(name in shown for name in rows)
    rows = {row["name"]: row for row in json.loads(users[0]("doctor", "--json").ok().out)}
    assert rows["overlayfs"]["works"] == "yes" and rows["network"]["found"].startswith("behind pasta")
    rows = {row["name"]: row for row in json.loads(users[1]("doctor", "--json").ok().out)}
    assert (
        rows["who builds"]["works"] == "limited" and "usermod --add-subuids" in rows["who builds"]["advice"]
    )


# -- in containers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_of_pybuild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of pybuild's own image, built from the sample by pybuild in a container of docker's defaults."""
    work = tmp_path_factory.mktemp("self")
    made = Pybuild(work / "store", work)
    path = f"{Path(PYBUILD).parent}:{os.environ['PATH']}"
    subprocess.run(
        [ROOT / "samples/make-bases"], env=made.environment({"PATH": path}), check=True, capture_output=True
    )
    with opened("docker", network="host") as place:
        base, archive = place.work / "base.tar", place.work / "pybuild.tar"
        made("save", "debian:bookworm-slim", "-o", base).ok()
        place("load", base).ok()
        sample = ROOT / "samples/pybuild/Dockerfile"
        done = place(
            "-f", sample, "-t", "pybuild", "-o", f"type=docker,dest={archive}", ROOT, timeout=600
        ).ok()
        assert "isolated by chroot" in done.err
        (work / "pybuild.tar").write_bytes(archive.read_bytes())
    return work / "pybuild.tar"


INSIDE = """
pybuild load /mnt/busybox.tar
pybuild -t inner --build-arg SOURCE_DATE_EPOCH=1600000000 -o /mnt/inner.tar /mnt/context
git --version
"""


@pytest.mark.interop
@pytest.mark.parametrize("name", ["docker", "podman"])
def test_own_image(
    tools: dict[str, str],
    image_of_pybuild: Path,
    busybox: Path,
    pybuild: Pybuild,
    tmp_path: Path,
    name: str,
) -> None:
    """The image builds another as a CI job starts it: defaults, the entrypoint cleared, a script for a shell."""
    text = "FROM busybox\nRUN id -u > /id && chown 5:6 /id && touch -d @1 /id /\nCOPY f /f\n"
    outer = pybuild.context(text, {"f": "1"})
    subprocess.run(["touch", "-d", "@1", outer / "f"], check=True)
    work = tmp_path / "inside"
    work.mkdir()
    subprocess.run(["cp", "-a", outer, work / "context"], check=True)
    (work / "busybox.tar").write_bytes(busybox.read_bytes())
    with CLIENTS[name](tools) as client:
        subprocess.run([*client, "load", "-q", "-i", image_of_pybuild], check=True, capture_output=True)
        limits = LIMITS if name == "podman" else ()  # raising them may be forbidden
        command = [*client, "run", "--rm", "--network=none", *limits, "-v", f"{work}:/mnt", "--entrypoint="]
        done = subprocess.run(
            [*command, "pybuild", "sh", "-ec", INSIDE],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0 and "git version" in done.stdout, done.stderr
    from oci import read_image

    expected = pybuild.export(outer, NONE, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    assert read_image(work / "inner.tar").config["rootfs"] == expected.config["rootfs"]


@contextlib.contextmanager
def docker_client(tools: dict[str, str]) -> Iterator[list[str]]:
    short = Path(tempfile.mkdtemp(prefix="d", dir="/dev/shm"))  # paths of sockets are short
    try:
        with dockerd(tools, short) as client:
            yield client
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", short], check=True)


@contextlib.contextmanager
def podman_client(tools: dict[str, str]) -> Iterator[list[str]]:
    place = tempfile.mkdtemp(prefix="p", dir="/dev/shm")  # it takes no long paths
    podman = [tools["podman"], f"--root={place}/root", f"--runroot={place}/run"]
    podman += ["--cgroup-manager=cgroupfs", "--runtime=runc"]
    try:
        yield podman
    finally:
        subprocess.run([*podman, "volume", "prune", "-f"], capture_output=True, check=False)
        subprocess.run([*podman, "unmount", "-a"], capture_output=True, check=False)
        subprocess.run(["umount", f"{place}/root/overlay"], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", place], check=True)
        remove_cgroups("libpod_parent")


CLIENTS = {"docker": docker_client, "podman": podman_client}
