"""Builds without root: users with ranges of ids, with one, in small namespaces; what doctor says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Pybuild, Tree
from oci import Image
from rootless import Installation, Rootless, command

pytestmark = pytest.mark.e2e

NONE = "--network=none"
ROOT = Path(__file__).resolve().parents[2]


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
    assert done.err.count("resource limits are not available here") == 1
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
from builder.runtime import id_maps, syscalls
ready, go = os.pipe()
pid, _pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER)
if pid:
    id_maps.write_maps(pid, id_maps.own_maps())
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
    assert rows["user"]["works"] == "limited" and "usermod --add-subuids" in rows["user"]["advice"]
