"""Machines that are set up in odd ways: locales, homes, outputs, networks, contexts that change."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, Result, Tree, make_tree
from rootless import Installation

from cache.context_scan import scan

pytestmark = pytest.mark.e2e

NONE = "--network=none"
# An 8-bit locale cannot be counted on; Python has the names of files in ASCII in this one.
EIGHT_BIT = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(pybuild: Pybuild, script: str, *args: str, env: dict[str, str] | None = None) -> Result:
    """Run *script* by bash, in which ``pybuild`` is the command, and *args* are ``$1`` and so on."""
    text = f'set -o pipefail; pybuild() {{ {shlex.quote(PYBUILD)} "$@"; }}\n{script}'
    done = subprocess.run(
        ["bash", "-c", text, "bash", *args],
        env=pybuild.environment(env), cwd=pybuild.work, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return Result(
        done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )


# -- locales ---------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [EIGHT_BIT, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}])
def test_bytes_do_not_depend_on_the_locale(pybuild: Pybuild, env: dict[str, str]) -> None:
    """Names of files, texts and values, UTF-8 or not, are those of any other build, which is cached then."""
    text = (
        "FROM busybox\nARG A\nLABEL b=ä\nCOPY . /f/\nCOPY ü* /g/\nRUN echo é$A > /ö; ls /f | od -c > /names\n"
        "COPY <<ß /h\nłódź\nß\n"
    )
    context = pybuild.context(text, {"üx": "1", "d": {"名": "2"}})
    os.rename(context / "d", os.fsencode(context) + b"/\xff")
    archive = pybuild.work / "a.tar"
    words = [NONE, "--build-arg", "A=ï", "-t", "x", "-o", f"type=oci,dest={archive}", str(context)]
    first = pybuild("--no-cache", *words, env=env).ok()
    assert archive.read_bytes()
    image = pybuild.export(context, NONE, "--build-arg", "A=ï")
    tree = image.tree()
    assert tree["ö"] == "éï\n" and tree["g/üx"] == "1" and tree["h"] == "łódź\n", tree
    second = pybuild(*words).ok()
    assert second.executed == 0 and first.err.count("image sha256") == 1
    assert "é" in first.err
    assert pybuild("run", NONE, "x", "echo", "é", env=env).out == "é\n"
    for command in ("history", "inspect"):
        assert pybuild(command, "x", env=env).ok().out == pybuild(command, "x").ok().out
    assert "höhe" in pybuild(pybuild.context("FROM busybox\nRUN höhe\n"), NONE, env=env).failed().err


# -- places for the store ----------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "", "~", "there"])
def test_user_without_a_home(installation: Installation, home: str | None) -> None:
    """Nothing is made in the current folder, which may be the context; what to say is said."""
    user = replace(installation.single, uid=54321, gid=54321)
    made = installation.pybuild(installation.single, "homeless")
    made.work.chmod(0o777)
    pybuild = replace(made, user=user)
    words = ["FROM scratch\nLABEL a=b\n"]
    (made.work / "Dockerfile").write_text(words[0])
    command = pybuild.command(".")
    at = command.index("--reset-env") + 1
    command[at:at] = ["env", "-u", "HOME", "-u", "XDG_DATA_HOME", "-u", "PYBUILD_ROOT"]
    command = [word for word in command if not word.startswith(("HOME=", "PYBUILD_ROOT="))]
    command = ["--clear-groups" if word == "--init-groups" else word for word in command]
    if home is not None:
        command[command.index("LC_ALL=C.UTF-8")] = f"HOME={home}"
    done = subprocess.run(command, cwd=made.work, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.count("\nerror: ") + done.stderr.startswith("error: ") == 1
    assert "--root" in done.stderr and "PYBUILD_ROOT" in done.stderr
    assert os.listdir(made.work) == ["Dockerfile"]


@pytest.mark.parametrize("lost", ["mark", "owners"])
def test_store_whose_owners_are_wrong(fresh: Pybuild, lost: str) -> None:
    """One that was made with other ids, or copied without its owners: doctor says so, and one command helps."""
    context = fresh.context("FROM scratch\nCOPY --chown=1:2 Dockerfile /\n")
    fresh(context).ok()
    store = replace(fresh, store=fresh.work / "copy")
    how = ["--preserve=ownership"] if lost == "mark" else []
    subprocess.run(["cp", "-r", *how, str(fresh.store), str(store.store)], check=True)
    if lost == "mark":
        store("-q", "-t", "x", context).ok()  # a copy that has all is as good as the first
        (store.store / "owners").write_text("one\n")
    for command in (["--no-cache", context], ["doctor"]):
        done = store(*command)
        said = done.err + done.out
        assert done.code == 1 and "pybuild reset" in said, said
        assert ("lost their owners" if lost == "owners" else "was made with one id") in said
    assert "removed everything in the store" in store("reset").ok().out
    assert os.listdir(store.store) == []
    store("--no-cache", context).ok()
    assert store("doctor").ok().out.count("\nstore ") == 0


def test_reset_removes_nothing_else(fresh: Pybuild) -> None:
    """Not what is no store's, and nothing of a store that is used."""
    folder = fresh.context(None, {"f": "1"})
    assert "there is no store in" in fresh("reset", "--root", folder).failed().err
    (fresh.store / "mine").write_text("1")
    with open(fresh.store / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert "another process uses the store" in fresh("reset").failed().err
    assert fresh("images").ok().out.count("\n") == 2
    fresh("reset").ok()
    assert os.listdir(folder) == ["f"] and os.listdir(fresh.store) == ["mine"]


@pytest.mark.parametrize("ranges", ["nameless", "own", "ours"])
def test_ranges_of_ids(installation: Installation, busybox: Path, ranges: str) -> None:
    """Of a uid without a name newuidmap maps none, which doctor says; of those with the own id, all others."""
    user = installation.ranges
    made = installation.pybuild(user, "ids", f"store-{ranges}")
    given = f"{user.name}:{user.subordinate}:65536\n"
    if ranges == "nameless":
        made = replace(made, user=replace(user, uid=54322, gid=54322))
        given = "54322:300000000:65536\n"
        os.chown(made.work, 54322, 54322)
        made = replace(made, store=made.work / "store")
    elif ranges == "own":
        given = f"{user.name}:{user.uid - 1}:3000\n"
    (made.work / "given").write_text(given)
    mounts = 'mount --bind given /etc/subuid; mount --bind given /etc/subgid; exec "$@"'

    def run(*args: str | Path) -> Result:
        words = ["--clear-groups" if word == "--init-groups" else word for word in made.command(*args)]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", mounts, "sh", *words],
            cwd=made.work, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    rows = {row["name"]: row for row in json.loads(run("doctor", "--json").out)}
    row = rows["user"]
    if ranges == "nameless":
        assert row["works"] == "limited" and "uid 54322 has no entry in /etc/passwd" in row["found"]
        assert "useradd" in row["advice"]
    else:
        assert row["works"] == "yes", row
        (made.work / "busybox.tar").write_bytes(busybox.read_bytes())
        run("load", "busybox.tar").ok()
        context = made.context("FROM busybox\nRUN touch /f && chown 5:6 /f && stat -c %u:%g /f\n")
        assert " 5:6\n" in run(NONE, context).ok().err


# -- contexts that change ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_files_that_go_while_they_are_copied(fresh: Pybuild, kind: str) -> None:
    """The context is blamed and the file named, with its folders; not the store."""
    files: Tree = {"d/a": "", "d/z/f": "1", "d/z/l": "-> f"}
    context = fresh.context("FROM scratch\nCOPY . /\n", files)
    os.truncate(context / "d/a", 64 << 20)  # it takes a while to write
    time.sleep(0.06)  # what changed a moment ago is read anew each time
    fresh(context).ok()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY d /b/\n")
    with subprocess.Popen(
        [PYBUILD, "--progress=rawjson", context], env=fresh.environment(), stderr=subprocess.PIPE, text=True
    ) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if "COPY d" in line:
                break
        if kind == "folder":
            os.rename(context / "d/z", context / "gone")
        else:
            (context / ("d/z/l" if kind == "link" else "d/z/f")).unlink()
        said = build.stderr.read()
    name = "d/z/l" if kind == "link" else "d/z/f"
    assert build.returncode == 1 and f"{name} changed while the build was reading it" in said, said
    assert "hint: build again" in said and "No such file" not in said


def test_files_that_go_while_they_are_listed(tmp_path: Path) -> None:
    """What fails is named with its folder."""
    make_tree(tmp_path, {"d/f": "", "d/g": ""})
    root = os.open(tmp_path, os.O_RDONLY)

    def keep(name: str, is_dir: bool) -> int:
        if not is_dir:
            (tmp_path / name).unlink()
        return 2

    try:
        with pytest.raises(FileNotFoundError) as failed:
            scan(root, "", keep)
        assert failed.value.filename in ("d/f", "d/g")
    finally:
        os.close(root)


# -- places with less than others ----------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        'mkdir root && mount --rbind / root && mount --make-rprivate / && exec chroot root sh -ec "cd $PWD; $1"',
        'mount -t tmpfs -o ro tmpfs /run && exec sh -ec "$1"',
    ],
)
def test_network_in_places(pybuild: Pybuild, place: str) -> None:
    """Inside a chroot, where the kernel makes no user namespace, and where /run is read-only."""
    context = pybuild.context("FROM busybox\nRUN ip addr show dev eth0; cat /proc/1/comm\n")
    command = f"{PYBUILD} --no-cache {context} && {PYBUILD} doctor"
    words = ["unshare", "-mn", "--propagation=private", "sh", "-ec", place, "sh", command]
    done = subprocess.run(
        words, cwd=pybuild.work, env=pybuild.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert " inet 10.213." in done.stderr and " cat\n" in done.stderr and "isolation" in done.stdout


def test_working_directory_that_was_removed(pybuild: Pybuild) -> None:
    """What needs none works; what does says so."""
    context = pybuild.context("FROM busybox\nRUN true\n")
    gone = "mkdir -p gone; cd gone; rmdir ../gone; "
    for command in (
        "images",
        f"--no-cache {NONE} {context}",
        f"{NONE} {context}",
        f"run {NONE} busybox true",
    ):
        shell(pybuild, f"{gone} pybuild {command}").ok()
    for command in (
        ".",
        "-t x ..",
        f"-f Dockerfile {context}",
        f"run {NONE} -v .:/x busybox true",
        "--root x images",
    ):
        said = shell(pybuild, f"{gone} pybuild {command}")
        assert said.failed(said.code).code in (1, 2), said.err
    assert "working directory has been removed" in shell(pybuild, f"{gone} pybuild .").err


def test_machine_without_settings(pybuild: Pybuild) -> None:
    """Steps need nothing of /proc/sys; their network does, and says so in one line."""
    context = pybuild.context("FROM busybox\nRUN true\n")
    for hidden, words, said in (
        ("/proc/sys", f"--no-cache {NONE}", ""),
        ("/proc/sys", "--no-cache", "/proc/sys/net/ipv4"),
        ("/proc", f"--no-cache {NONE}", "mount /proc with all its files"),
    ):
        script = f'mount -t tmpfs tmpfs {hidden} && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", script, "sh", PYBUILD, *words.split(), context],
            env=pybuild.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        result = Result(done.returncode, done.stdout, done.stderr)
        assert said in (result.failed().err if said else result.ok().err), result.err


# -- outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["save busybox", "-o type=oci,dest=- $1", "-o type=tar,dest=- $1"])
def test_standard_output_cannot_be_written(pybuild: Pybuild, command: str) -> None:
    """What reads an archive went away, the disk that it goes to is full, nothing is there: one line says so."""
    context = str(pybuild.context("FROM busybox\nCOPY f /\n", {"f": "1"}))
    for where, why in (("| true", "Broken pipe"), ("> /dev/full", "No space left"), (">&-", "Bad file")):
        said = shell(pybuild, f"pybuild {command} {where}", context).failed().err
        assert f"error: writing to standard output: {why}" in said, said


def test_standard_output_does_not_block(pybuild: Pybuild) -> None:
    """A pipe that its reader has made so, and reads slowly, gets everything."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen([PYBUILD, "save", "busybox"], env=pybuild.environment(), stdout=write) as saving:
        os.close(write)
        with open(read, "rb") as file:
            assert len(file.read()) > 1 << 20
    assert saving.returncode == 0
    assert shell(pybuild, "pybuild save busybox | wc -c").ok().out.strip() != "0"


OTHER = 54321  # a user who has nothing to do with it


@pytest.fixture
def everybodys(pybuild: Pybuild) -> Path:
    """A folder as /tmp is one, and a file of ours that nobody is to touch."""
    folder = pybuild.work / "everybodys"
    folder.mkdir()
    folder.chmod(0o1777)
    (pybuild.work / "victim").mkdir()
    (pybuild.work / "victim/f").write_text("ours")
    return folder


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "ours"])
def test_links_of_others_are_not_followed(pybuild: Pybuild, everybodys: Path, kind: str) -> None:
    """As the kernel has it where it is told to: not in a folder where everybody writes."""
    dest = everybodys / "x.tar"
    if kind == "pipe":
        os.mkfifo(dest)
    else:
        dest.symlink_to(pybuild.work / ("victim" if kind == "folder" else "victim/f"))
    os.chown(dest, OTHER if kind != "ours" else 0, OTHER, follow_symlinks=False)
    for command in (["save", "busybox", "-o"], ["-q", pybuild.context("FROM scratch\nLABEL a=b\n"), "-o"]):
        done = pybuild(*command, dest / "new.tar" if kind == "folder" else dest)
        if kind == "ours":
            done.ok()
        else:
            assert f"of another user (uid {OTHER})" in done.failed().err
    if kind == "ours":
        assert dest.is_symlink() and (pybuild.work / "victim/f").stat().st_size > 1000
    else:
        assert (pybuild.work / "victim/f").read_text() == "ours" and len(
            os.listdir(pybuild.work / "victim")
        ) == 1


def test_names_that_cannot_be_taken_beforehand(pybuild: Pybuild, everybodys: Path) -> None:
    """What is written until it is whole has a name that nobody can guess; and any name can be written."""
    shell(pybuild, f"touch everybodys/x.tar.pybuild-$$; exec {PYBUILD} save busybox -o everybodys/x.tar").ok()
    long = "é" * 127
    pybuild("save", "busybox", "-o", everybodys / long).ok()
    assert sorted(os.listdir(everybodys))[0] == "x.tar"
    assert len(os.listdir(everybodys)) == 3


def test_streams_by_their_paths(pybuild: Pybuild) -> None:
    assert int(shell(pybuild, "pybuild save busybox -o /dev/stdout | wc -c").ok().out) > 1000
    assert int(shell(pybuild, "mkfifo p; wc -c < p & pybuild save busybox -o p; wait").ok().out) > 1000
