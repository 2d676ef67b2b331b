"""The cache never lies: what makes a step run again and what does not (T94 to T110)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, Tree
from oci import read_image

pytestmark = pytest.mark.e2e

UUID = "cat /proc/sys/kernel/random/uuid"


def again(pybuild: Pybuild, context: Path, *options: str) -> bool:
    """Whether a build of *context* executes anything."""
    return pybuild("--network=none", *options, context).ok().executed > 0


BUSTS = {
    "content": "printf other > d/f",
    "same-size": "printf 2 > d/f",
    "T95-mode": "chmod 600 d/f",
    "directory-mode": "chmod 700 d",
    "T97-renamed": "mv d/f d/g",
    "added": "touch d/new",
    "removed": "rm d/e/x",
    "link-target": "ln -sfn elsewhere d/l",
    "file-to-link": "ln -sf e/x d/f",
    "file-to-directory": "rm d/f; mkdir d/f",
    "xattr": 'python3 -c \'import os; os.setxattr("d/f", "user.x", b"1")\'',
    "T100-same-metadata": 't=$(stat -c %y d/f); printf 3 > d/f; touch -d "$t" d/f',
}
KEEPS = {
    "T94-mtime": "touch -d 2001-01-01 d/f",
    "owner": "chown 5:5 d/f",
    "rewritten": "rm d/f; printf 1 > d/f",
    "T96-link-made-anew": "rm d/l; umask 077; ln -s f d/l",
    "T110-elsewhere": "echo x > other",
    "comment": "sed -i '1i # a comment' Dockerfile",
    "stage-name": "sed -i 's/busybox/busybox AS x/' Dockerfile",
}
SOME: Tree = {"d": {"f": "1", "e": {"x": "2"}, "l": "-> f"}, "other": "y"}


@pytest.mark.parametrize("change", BUSTS.values(), ids=BUSTS.keys())
def test_runs_again(pybuild: Pybuild, change: str) -> None:
    """And what it builds then is what a fresh build of the same context is."""
    context = pybuild.context(f"FROM busybox\nCOPY d /d\nRUN {UUID} > /u\n", SOME)
    again(pybuild, context)
    assert not again(pybuild, context)
    subprocess.run(["sh", "-ec", change], cwd=context, check=True)
    assert again(pybuild, context)
    warm = pybuild.export(context, "--network=none").layers[-2].data
    assert warm == pybuild.export(context, "--network=none", "--no-cache").layers[-2].data


@pytest.mark.parametrize("change", KEEPS.values(), ids=KEEPS.keys())
def test_stays_cached(pybuild: Pybuild, change: str) -> None:
    context = pybuild.context(f"FROM busybox\nCOPY d /d\nRUN {UUID} > /u\n", SOME)
    first = pybuild.export(context, "--network=none").read("u")
    subprocess.run(["sh", "-ec", change], cwd=context, check=True)
    assert not again(pybuild, context)
    assert pybuild.export(context, "--network=none").read("u") == first


def test_file_replaced_between_two_quick_builds(pybuild: Pybuild) -> None:
    """Racily clean: a file written in the very moment it was scanned is hashed again."""
    context = pybuild.context("FROM scratch\nCOPY f /f\n", {"f": "0"})
    for number in range(1, 8):
        (context / "f").write_text(str(number))
        assert pybuild.export(context).read("f") == str(number).encode()


@pytest.mark.parametrize(
    ("first", "second", "runs"),
    [
        ("RUN true", "RUN true ", False),
        ("RUN true", "RUN  true", False),
        ("RUN true", "run true", False),
        ("RUN true && true", "RUN true && \\\n  true", True),
        ("RUN true", 'RUN ["/bin/sh", "-c", "true"]', False),
        ("ENV a=1\nRUN true", "ENV a=2\nRUN true", True),
        ("ARG a=1\nRUN true", "ARG a=2\nRUN true", True),
        ("RUN true\nENV a=1", "RUN true\nENV a=2", False),
        ("LABEL a=1\nRUN true", "LABEL a=2\nRUN true", False),
        ("USER 0\nRUN true", "USER 1\nRUN true", True),
        ("WORKDIR /a\nRUN true", "WORKDIR /b\nRUN true", True),
        ("RUN true", "RUN --network=none true", False),
    ],
)
def test_what_a_run_depends_on(pybuild: Pybuild, first: str, second: str, runs: bool) -> None:
    """T98; the first line makes the case's steps its own."""
    mark = f"RUN echo {abs(hash((first, second)))}-{time.time_ns()}\n"
    again(pybuild, pybuild.context(f"FROM busybox\n{mark}{first}\n"))
    assert again(pybuild, pybuild.context(f"FROM busybox\n{mark}{second}\n")) is runs


def test_copy_from_is_keyed_by_content(pybuild: Pybuild) -> None:
    """T99: a stage that ran again and made equal files leaves its copiers cached."""
    text = (
        "FROM busybox AS a\nARG v=0\nRUN echo same > /f\nFROM busybox\nCOPY --from=a /f /f\nRUN "
        + UUID
        + " > /u\n"
    )
    context = pybuild.context(text)
    first = pybuild.export(context, "--network=none").read("u")
    done = pybuild("--network=none", "--build-arg", "v=1", context).ok()
    assert done.executed == 1
    assert pybuild.export(context, "--network=none", "--build-arg", "v=1").read("u") == first


def test_no_cache_runs_and_keeps(pybuild: Pybuild) -> None:
    """T102: every step runs, and what it made is what the next build finds."""
    context = pybuild.context(f"FROM busybox\nRUN {UUID} > /u\n")
    first = pybuild.export(context, "--network=none").read("u")
    second = pybuild.export(context, "--network=none", "--no-cache").read("u")
    assert first != second
    assert pybuild.export(context, "--network=none").read("u") == second


def test_cached_build_starts_and_writes_nothing(fresh: Pybuild) -> None:
    """No container, no file more (T101): not even in the index."""
    context = fresh.context("FROM busybox\nCOPY d /d\nRUN echo 1 > /f\n", SOME)
    fresh("-t", "x", "--network=none", context).ok()
    fresh("-t", "x", "--network=none", context).ok()
    before = _files(fresh.store)
    for _ in range(3):
        done = fresh("-t", "x", "--network=none", context).ok()
        assert done.executed == 0 and done.cached == 3
    assert _files(fresh.store) == before


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change, besides locks and logs of SQLite."""
    found = {}
    for base, _folders, names in os.walk(folder):
        for name in names:
            info = os.lstat(os.path.join(base, name))
            if not name.endswith(("-shm", "-wal", ".lock")):
                found[os.path.join(base, name)] = (info.st_size, info.st_mtime_ns)
    return found


def test_cached_build_traces(fresh: Pybuild, tmp_path: Path) -> None:
    """A fully cached build forks nothing and opens no connection."""
    context = fresh.context("FROM busybox\nRUN echo 1 > /f\n")
    fresh("-t", "x", context).ok()
    trace = tmp_path / "trace"
    done = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=connect,clone,clone3,fork,vfork,execve", PYBUILD, "-t", "x", context],
        cwd=fresh.work,
        env=fresh.environment(),
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert "CACHED" in done.stderr
    calls = [line.split("(")[0].split()[-1] for line in trace.read_text().splitlines() if "(" in line]
    assert calls == ["execve"]


def test_tag_moves_with_a_cached_build(pybuild: Pybuild) -> None:
    """Replaying a cached build tags as asked, whatever the name meant meanwhile."""
    one = pybuild.context("FROM busybox\nRUN echo one\n", name="one")
    two = pybuild.context("FROM busybox\nRUN echo two\n", name="two")
    ids = [pybuild("-q", "-t", "moving", "--network=none", c).ok().out for c in (one, two, one, one)]
    assert ids[0] == ids[2] == ids[3] != ids[1]
    shown = next(line for line in pybuild("images").out.splitlines() if line.startswith("moving"))
    assert ids[0][7:19] in shown


def test_base_image_replaced(pybuild: Pybuild) -> None:
    """T103: a tag means what the store has now."""
    base = pybuild.context("FROM busybox\nRUN echo one > /v\n", name="base")
    context = pybuild.context("FROM moving-base\nRUN cp /v /w\n")
    pybuild("-t", "moving-base", "--network=none", base).ok()
    assert pybuild.export(context, "--network=none").read("w") == b"one\n"
    (base / "Dockerfile").write_text("FROM busybox\nRUN echo two > /v\n")
    pybuild("-t", "moving-base", "--network=none", base).ok()
    assert pybuild("--network=none", context).ok().executed == 1
    assert pybuild.export(context, "--network=none").read("w") == b"two\n"


def test_same_image_on_two_stores(pybuild: Pybuild, fresh: Pybuild) -> None:
    """T104: equal layers, whatever store or day."""
    files: Tree = {"a": {"b": "1", "l": "-> b"}}
    text = "FROM scratch\nCOPY a /x/y\nWORKDIR /w\nCOPY --chown=3:4 a .\n"
    first = pybuild.build(text, files)
    made = first.root()["x"][0].mtime
    second = fresh.export(pybuild.work / "context")
    assert first.config["rootfs"] == second.config["rootfs"]
    assert made == second.root()["x"][0].mtime


def test_ignore_file_change_is_seen(pybuild: Pybuild) -> None:
    """Also one that appears, and one that takes precedence."""
    context = pybuild.context("FROM scratch\nCOPY d /d\n", {"d": {"a": "1", "b": "2"}})

    def names() -> set[str]:
        return {path for path in pybuild.export(context).tree() if path != "d"}

    assert names() == {"d/a", "d/b"}
    pybuild(context).ok()
    (context / ".dockerignore").write_text("d/a\n")
    pybuild(context).ok()
    assert names() == {"d/b"}
    (context / "Dockerfile.dockerignore").write_text("d/b\n")
    pybuild(context).ok()
    assert names() == {"d/a"}


def test_environment_is_no_input(pybuild: Pybuild) -> None:
    """The caller's environment reaches no step; a build argument taken from it does."""
    context = pybuild.context("FROM busybox\nARG v\nRUN echo [$v] [$LEAK] > /out\n")
    pybuild("--network=none", "-t", "env", "--build-arg", "v", context, env={"v": "1", "LEAK": "x"}).ok()
    assert pybuild("run", "--network=none", "env", "cat", "/out").out == "[1] []\n"
    pybuild("--network=none", "-t", "env", "--build-arg", "v", context, env={"v": "2", "LEAK": "x"}).ok()
    assert pybuild("run", "--network=none", "env", "cat", "/out").out == "[2] []\n"


def test_many_layers(pybuild: Pybuild) -> None:
    """More steps than one mount option page of long names would take."""
    lines = "".join(f"RUN echo {n} > /f{n}\n" for n in range(120))
    image = pybuild.export(pybuild.context("FROM busybox\n" + lines), "--network=none")
    assert len(image.layers) == 121
    assert image.read("f119") == b"119\n"


def test_no_cache_of_one_stage(pybuild: Pybuild) -> None:
    """T102: by name or number; others stay cached, but for what is made from it."""
    text = "FROM busybox AS a\nRUN echo a\nFROM busybox AS b\nRUN echo b\nFROM busybox\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n"
    context = pybuild.context(text)
    again(pybuild, context)
    for stage in ("b", "B", "1"):
        assert pybuild("--network=none", "--no-cache-filter", stage, context).ok().executed == 1
    assert pybuild("--network=none", context).ok().executed == 0


STALE = {
    "copy": "FROM busybox\nCOPY --from=a /x /y\n",
    "bind": "FROM busybox\nRUN --mount=from=a,target=/m cp /m/x /y\n",
    "child": "FROM a\nRUN cp /x /y\n",
    "grandchild": "FROM a\nCOPY d /d\nRUN cp /x /y\n",
}


@pytest.mark.parametrize("rest", STALE.values(), ids=STALE.keys())
def test_stage_that_ran_again_is_seen(pybuild: Pybuild, rest: str) -> None:
    """What is made from a stage that ran again, under the same key, is made from what it left now."""
    context = pybuild.context(f"FROM busybox AS a\nRUN {UUID} > /x\n{rest}", SOME)
    look = ["--network=none"]
    first = pybuild.export(context, *look).read("y")
    second = pybuild.export(context, *look, "--no-cache-filter=a").read("y")
    assert second != first
    image = pybuild.export(context, *look)
    assert image.read("y") == second
    if "x" in image.root():
        assert image.read("x") == second


def test_replay_sees_what_decides(pybuild: Pybuild) -> None:
    """A build that nothing was done for has looked at everything that the first one looked at."""
    tree: Tree = {
        "a": {"f": "1"},
        "b": {"f": "2"},
        "link": "-> a",
        "dockerfile": "FROM scratch\nCOPY link/f /f\n",
    }
    context = pybuild.context(None, tree)

    def image() -> str:
        ids = [pybuild("-q", context).ok().out for _ in range(2)]
        assert ids[0] == ids[1]
        return ids[0]

    first = image()
    (context / "link").unlink()
    (context / "link").symlink_to("b")
    second = image()
    assert second != first
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a/f /other\n")
    assert image() not in (first, second)
    (context / "Dockerfile").unlink()
    (context / "Dockerfile").symlink_to("/dev/zero")
    pybuild("-q", context).failed()


def test_replay_sees_the_environment_of_build_args(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nARG FOO\nLABEL l=$FOO\n")
    for option in (["--build-arg=FOO"], ["--build-arg", "FOO"]):
        ids = {pybuild("-q", *option, context, env={"FOO": value}).ok().out for value in ("1", "2", "1")}
        assert len(ids) == 2


def test_replay_sees_a_secret_go(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    secret = pybuild.work / "secret"
    secret.write_text("s")
    for _ in range(2):
        pybuild("--secret", f"id=s,src={secret}", context).ok()
    secret.unlink()
    pybuild("--secret", f"id=s,src={secret}", context).failed(2)


def test_source_date_epoch(pybuild: Pybuild) -> None:
    """T89: what is made new has that time, what is copied its own; the same image on any day."""
    base = pybuild.context("FROM busybox\nRUN echo 1 > /f\n", name="base")
    pybuild("--network=none", "-t", "epoch-base", base).ok()
    files: Tree = {"a": {"b": "1", "l": "-> b"}}
    context = pybuild.context("FROM epoch-base\nCOPY a /x/a\nWORKDIR /w/v\nENV a=1\n", files)
    images = []
    for options, env in (
        (("--build-arg", "SOURCE_DATE_EPOCH=1000000000"), {}),
        ((), {"SOURCE_DATE_EPOCH": "1000000000"}),
    ):
        for _ in range(2):
            archive = pybuild.work / "epoch.tar"
            pybuild("--no-cache", *options, "-o", f"type=oci,dest={archive}", context, env=env).ok()
            images.append(archive.read_bytes())
    assert len(set(images)) == 1
    from oci import read_image

    image = read_image(images[0])
    assert image.config["created"] == "2001-09-09T01:46:40Z"
    new = [line["created"] for line in image.history if line.get("comment") == "buildkit.dockerfile.v0"]
    assert new[-3:] == ["2001-09-09T01:46:40Z"] * 3 and new[0] != new[-1]
    root = image.root()
    assert {root[name][0].mtime for name in ("x", "w", "w/v")} == {1_000_000_000}
    assert root["x/a/b"][0].mtime == int((context / "a/b").stat().st_mtime)
    assert "SOURCE_DATE_EPOCH" in pybuild("--build-arg", "SOURCE_DATE_EPOCH=x", context).failed(2).err


def test_rewrite_timestamp(pybuild: Pybuild) -> None:
    """T90: new layers hold no later time than the epoch, those of the base stay as they are."""
    context = pybuild.context("FROM busybox\nRUN touch /new && touch -d @5 /old\n")
    archive = pybuild.work / "r.tar"
    epoch = ("--build-arg", "SOURCE_DATE_EPOCH=1000", "--network=none")
    plain = pybuild.export(context, *epoch)
    for _ in range(2):
        pybuild(*epoch, "-o", f"type=oci,dest={archive},rewrite-timestamp=true", context).ok()
        image = read_image(archive)
        root = image.root()
        assert (root["new"][0].mtime, root["old"][0].mtime) == (1000, 5)
        assert image.config["rootfs"]["diff_ids"][:-1] == plain.config["rootfs"]["diff_ids"][:-1]
        mark = {"buildkit/rewritten-timestamp": "1000"}
        assert [item.get("annotations") for item in image.manifest["layers"]] == [None, mark]
    pybuild("-o", f"type=oci,dest={archive},rewrite-timestamp=perhaps", context).failed(2)


@pytest.mark.parametrize("keep_times", [False, True], ids=["edited", "same-size-and-time"])
def test_changed_code_believes_nothing_of_the_old(fresh: Pybuild, tmp_path: Path, keep_times: bool) -> None:
    """Under one version number: neither a syntax tree nor the conclusion of the same command line."""
    code = tmp_path / "code"
    for package in ("builder", "cache", "grammar"):
        shutil.copytree(Path(__file__).parents[2] / package, code / package)
    context = fresh.context("FROM busybox\nLABEL some=thing\n")
    start = f"import sys; sys.path.insert(0, {str(code)!r}); from builder.cli.main import main; main()"

    def build() -> str:
        words = [sys.executable, "-c", start, "-t", "a", str(context)]
        subprocess.run(words, env=fresh.environment(), check=True, capture_output=True)
        return fresh("history", "--json", "a").ok().out

    assert "LABEL some=thing" in build()
    assert "LABEL some=thing" in build()  # now of its memo
    path = code / "builder/plan/convert.py"
    text, found = path.read_bytes(), path.stat()
    path.write_bytes(text.replace(b'f"LABEL {shown}"', b'f"LaBeL {shown}"'))
    if keep_times:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    subprocess.run(
        ["find", code, "-name", "*.pyc", "-delete"], check=True
    )  # Python looks at time and size only
    assert "LaBeL some=thing" in build()


def test_no_cache_parses_anew(fresh: Pybuild) -> None:
    texts = [f"FROM busybox\nLABEL a={value}\n" for value in ("1", "2")]
    for text in texts:
        fresh.build(text)
    with contextlib.closing(sqlite3.connect(fresh.store / "index.db")) as index:
        (one, first), (two, second) = index.execute("SELECT key, value FROM memos WHERE key LIKE 'ast:%'")
        index.executemany("UPDATE memos SET value = ? WHERE key = ?", [(first, two), (second, one)])
        index.commit()
    assert fresh.build(texts[0]).settings["Labels"] == {"a": "2"}  # what the index says is believed
    assert fresh.build(texts[0], None, "--no-cache").settings["Labels"] == {"a": "1"}
