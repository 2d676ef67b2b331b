"""What a starting step, other users and images learn of the machine (S23 to S25)."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Tree
from modes import CANARY, NONE, Mode
from oci import read_image
from rootless import command

import builder

pytestmark = pytest.mark.e2e

TRAP = """\
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void trap(void)
{
    FILE *file = fopen(getenv("PWNED") ? getenv("PWNED") : "/PWNED", "w");
    if (file) fclose(file);
}
"""


@pytest.fixture(scope="session")
def trap(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shared library that leaves a file when it is loaded."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "trap.c").write_text(TRAP)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "trap.so", folder / "trap.c"], check=True)
    marker = folder / "PWNED"
    subprocess.run(["/bin/true"], env={"LD_PRELOAD": f"{folder}/trap.so", "PWNED": str(marker)}, check=True)
    assert marker.exists(), "the trap is none"
    return (folder / "trap.so").read_bytes()


def trapped_files(trap: bytes) -> Tree:
    """Everywhere an interpreter or a library might look: what would leave a mark."""
    python = "open('/PWNED', 'w').close()\n"
    modules = (
        "encodings",
        "site.py",
        "sitecustomize.py",
        "usercustomize.py",
        "os.py",
        "codecs.py",
        "warnings.py",
        "linecache.py",
        "traceback.py",
        "pwd.py",
        "struct.py",
    )
    stdlib: Tree = {name: {"__init__.py": python} if "." not in name else python for name in modules}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    nss = {f"libnss_{name}.so.2": trap for name in ("files", "dns", "compat", "systemd", "myhostname")}
    return {
        "usr": {"lib": {version: stdlib, "python3": stdlib, "x86_64-linux-gnu": {**nss, "gconv": {"UTF-16.so": trap}}},
                "local": {"lib": {version: stdlib}}},
        "lib": {"x86_64-linux-gnu": {**nss, "libc.so.6": trap}},
        "lib64": {"libc.so.6": trap},
        "etc": {
            "ld.so.preload": "/lib/x86_64-linux-gnu/libnss_files.so.2\n",
            "nsswitch.conf": "passwd: systemd files\nhosts: myhostname dns\n",
            "passwd": "root:x:0:0:root:/root:/bin/sh\nbob:x:10:20::/home/bob:/bin/sh\n",
            "group": "root:x:0:\nstaff:x:20:\n",
        },
        "root": {".local": {"lib": {version: {"site-packages": stdlib}}}},
        str(Path(builder.__file__).parent).lstrip("/"): {"runtime": {"container": {"syscalls.tbl": "deny everything\n", "init.py": python}}},
    }  # fmt: skip


def test_S23_import_purity(mode: Mode, trap: bytes, tmp_path: Path) -> None:
    """Between entering the image's root and the command nothing is opened, loaded or executed."""
    user = "" if mode.name == "rootless-single" else "USER bob:staff\n"
    text = f"FROM busybox\nCOPY holder /\nENV LANG=tr_TR.UTF-16 LC_ALL=tr_TR.UTF-16 PYTHONPATH=/usr/lib/python3\n{user}WORKDIR /w/x\nRUN id\n"
    context = mode.pybuild.context(text, {"holder": trapped_files(trap)})
    archive = mode.pybuild.work / "out.tar"
    words, env = command(mode.pybuild, NONE, "--no-cache", "-o", f"type=oci,dest={archive}", context)
    trace = ["strace", "-ff", "-qq", "-e", "trace=%file,openat2,pivot_root", "-o", str(tmp_path / "log")]
    done = subprocess.run(
        [*trace, *words],
        env=env,
        cwd=mode.pybuild.work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = []
    for log in tmp_path.glob("log.*"):
        _before, entered, after = log.read_text().partition("pivot_root(")
        if entered:
            steps.append(after.splitlines()[1:])
    (calls,) = steps
    last = next(n for n, line in enumerate(calls) if line.startswith("execve(") and line.endswith(" = 0"))
    names = [line.partition("(")[0] for line in calls[:last]]
    assert set(names) <= {"umount2", "chdir", "getcwd"}, calls[:last]
    assert len(calls) > last + 1, "what the command does is traced"
    assert "PWNED" not in read_image(archive).tree() and not Path("/PWNED").exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody gets to, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="pybuild-open.", dir="/dev/shm"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_S24_permissions_of_the_store(mode: Mode, umask: str, open_folder: Path, busybox: Path) -> None:
    """CVE-2021-41091: nobody else reads, writes or enters the store; what is built is the same."""
    store = open_folder / "store"
    if mode.user is not None:
        os.chown(open_folder, mode.user.uid, mode.user.gid)
    if umask == "000":  # as somebody who was there before may have left it
        store.mkdir()
        store.chmod(0o777)
        if mode.user is not None:
            os.chown(store, mode.user.uid, mode.user.gid)
    pybuild = dataclasses.replace(mode.pybuild, store=store)
    (pybuild.work / "busybox.tar").write_bytes(busybox.read_bytes())
    context = pybuild.context(
        "FROM busybox\nWORKDIR /made/here\nCOPY d /d\nRUN --mount=type=cache,target=/c touch /c/x /y; mkdir /z\nADD e.tar /e\n",
        {"d": {"f": "1"}, "e.tar": _small_tar()},
    )

    def run(*args: str | Path) -> str:
        words, env = command(pybuild, *args)
        done = subprocess.run(
            ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *words],
            env=env, cwd=pybuild.work, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("load", pybuild.work / "busybox.tar")
    archive = pybuild.work / "out.tar"
    run(NONE, "-t", "x", "-o", f"type=oci,dest={archive}", context)
    modes = {path: oct(entry.mode) for path, (entry, _) in read_image(archive).root().items() if path in
             ("made", "made/here", "d", "d/f", "y", "z", "e", "e/g")}  # fmt: skip
    assert modes == {
        "made": "0o755", "made/here": "0o755", "d": "0o755", "d/f": "0o644", "y": "0o644", "z": "0o755", "e": "0o755",
        "e/g": "0o644",
    }  # fmt: skip
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    search = [
        "find",
        str(store),
        "-readable",
        "-print",
        "-o",
        "-writable",
        "-print",
        "-o",
        "-executable",
        "-print",
    ]
    found = subprocess.run([*nobody, *search], capture_output=True, text=True, check=False)
    assert found.stdout == "" and "ermission denied" in found.stderr
    (open_folder / "twin").write_text("x")
    search[1] = str(open_folder / "twin")
    assert subprocess.run([*nobody, *search], capture_output=True, text=True, check=False).stdout


def _small_tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("g")
        entry.mode = 0o644
        tar.addfile(entry)
    return data.getvalue()


def test_S25_environment_of_the_caller(mode: Mode) -> None:
    """Not in the image, its history, the export, the store or what is said: nothing of what nobody asked for."""
    pybuild = dataclasses.replace(mode.pybuild, store=mode.pybuild.work / "store")
    busybox = pybuild.work / "busybox.tar"
    mode.pybuild("save", "busybox", "-o", busybox).ok()
    pybuild("load", busybox).ok()
    text = "FROM busybox\nARG asked\nENV a=$PYBUILD_CANARY b=${PYBUILD_CANARY:-none}\nCOPY f /f\nRUN env; echo $PYBUILD_CANARY > /e\n"
    context = pybuild.context(text, {"f": "1"})
    archive = pybuild.work / "out.tar"
    environment = {"PYBUILD_CANARY": CANARY, "REGISTRY_PASSWORD": CANARY, "asked": "twin-" + CANARY[::-1]}
    done = pybuild(
        NONE, "--build-arg", "asked", "-t", "x", "-o", f"type=oci,dest={archive}", context, env=environment
    ).ok()
    image = read_image(archive)
    assert CANARY not in done.err + done.out + json.dumps(image.config) + json.dumps(image.manifest)
    assert CANARY[::-1] in json.dumps(image.history)
    held = b"".join(layer.data for layer in image.layers)
    for folder, _, names in os.walk(pybuild.store):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                held += path.read_bytes()
    assert CANARY.encode() not in held and CANARY[::-1].encode() in held
