"""Inputs that mean harm: the PAR, SRC and SEC rows of the security reference, in bounded time."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from harness import Pybuild, Tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import Images

from builder.errors import BuildError
from builder.plan.planner import plan
from builder.request import BuildRequest
from cache.digest import digest
from cache.errors import CacheError
from grammar.errors import DockerfileError, ReferenceError_
from grammar.ignore import parse_ignore
from grammar.lint.linter import Checks, Linter
from grammar.parse import parse
from grammar.reference import parse_reference

pytestmark = pytest.mark.e2e

LIMIT = 10.0  # seconds, on a machine that is busy


def refused(pybuild: Pybuild, data: bytes) -> str:
    """Build a Dockerfile of any bytes, which must fail cleanly and soon; what was said."""
    context = pybuild.context(None)
    (context / "Dockerfile").write_bytes(data)
    started = time.monotonic()
    said = pybuild("--network=none", context).failed().err
    assert time.monotonic() - started < LIMIT
    return said


# -- PAR -----------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["FROM", "scratch", "busybox", "a", "b", "0", "-1", "99", "AS", "COPY", "--from=", "RUN", "--mount=", "x=",
     "ARG", "ENV", "ONBUILD", "$a", "${a:-", "}", "[", '"', "]", "<<E", "E", "\\", "\n", "\n", "\n", "/", "..",
     "type=cache", "from=a", "target=/x", "WORKDIR", "USER", "EXPOSE", "1-", ":", "LABEL", "=", ",", "\0", "é"]
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, max_size=40), st.booleans())
def test_PAR_01_odd_graphs(words: list[str], every: bool) -> None:
    """Planning fails with an error of ours, or not at all."""
    try:
        file = parse("FROM busybox AS a\n" + " ".join(words))
        plan(file, BuildRequest("/", ""), Images("busybox"), Linter(file, Checks()), every)
    except (DockerfileError, BuildError):
        pass


PAR_02 = {
    "million-lines": b"FROM scratch\n" + b"RUN x\n" * 10**6 + b"NOPE\n",
    "long-line": b"FROM scratch\nRUN " + b"x" * (15 << 20),
    "continuations": b"FROM scratch\nRUN " + b"a \\\n" * 10**5,
    "open-heredoc": b"FROM scratch\nRUN <<E\n" + b"x\n" * 10**5,
    "nested-heredocs": b"FROM scratch\nCOPY " + b" ".join(b"<<E%d" % n for n in range(2000)) + b" /\n",
    "nul": b"FROM scratch\nRUN a\0b\n",
    "utf-16": "FROM scratch\n".encode("utf-16"),
    "bom-inside": b"FROM scratch\n\xef\xbb\xbfRUN x\n",
    "too-large": b"#" * (17 << 20),
}


@pytest.mark.parametrize("data", PAR_02.values(), ids=PAR_02.keys())
def test_PAR_02_odd_text(pybuild: Pybuild, data: bytes) -> None:
    refused(pybuild, data)


@pytest.mark.parametrize(
    "line",
    [
        "ENV A=" + "${a:-" * 10**4 + "}" * 10**4,
        "ENV A=aa\n" + "ENV A=$A$A\n" * 40,
        "ENV A=${a//" + "*a" * 5000 + "/x}",
    ],
    ids=["deep", "doubling", "pattern"],
)
def test_PAR_03_expansion(pybuild: Pybuild, line: str) -> None:
    context = pybuild.context(f"FROM scratch\nENV a={'a' * 5000}\n{line}\n")
    started = time.monotonic()
    done = pybuild(context)
    assert done.code in (0, 1) and "Traceback" not in done.err and time.monotonic() - started < LIMIT


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"FROM s{n - 1} AS s{n}\n" if n else "FROM scratch AS s0\n" for n in range(5000)),
        "".join(f"FROM scratch AS s{n}\nCOPY --from=s{(n + 1) % 3000} / /\n" for n in range(3000)),
        "FROM scratch AS a\n" * 3000 + "COPY --from=a / /\n",
        "FROM a AS a\n",
        "".join(
            f"FROM scratch AS s{n}\nCOPY --from={n - 1} / /\n" if n else "FROM scratch\n" for n in range(5000)
        ),
        "".join(f"ARG g{n}=1\n" for n in range(5000))
        + "".join(f"FROM scratch AS x{n}\n" for n in range(5000)),
    ],
    ids=["chain", "circle", "duplicates", "itself", "copies", "globals"],
)
def test_PAR_04_graphs(pybuild: Pybuild, text: str) -> None:
    """No limit of recursion is hit, and nothing takes long."""
    context = pybuild.context(text)
    started = time.monotonic()
    done = pybuild("--check", context)
    assert done.code in (0, 1) and "Traceback" not in done.err and time.monotonic() - started < LIMIT


@pytest.mark.parametrize(
    "line", ["ENV v{0}=x", "LABEL v{0}=x", "ARG v{0}=x", "CMD {0}", "ENV v=$w{0}", "VOLUME /{0}"]
)
def test_PAR_02_many_lines(pybuild: Pybuild, line: str) -> None:
    """What a stage has gathered is not gone through for every line, and neither is the file."""
    context = pybuild.context("FROM scratch\n" + "".join(line.format(n) + "\n" for n in range(19_000)))
    started = time.monotonic()
    pybuild("--check", context)
    assert time.monotonic() - started < 2 * LIMIT  # 3 to 6 s on two idle processors


def test_PAR_02_too_many_lines(pybuild: Pybuild) -> None:
    assert "more than 20000 instructions" in pybuild.refuse("FROM scratch\n" * 20_001)


def test_PAR_02_misspelt_names(pybuild: Pybuild) -> None:
    """What may have been meant is not looked for among all names for every name."""
    text = "".join(f"ARG VAR{n}=1\n" for n in range(3000)) + "".join(
        f"FROM scratch$VAR_{n}\n" for n in range(3000)
    )
    started = time.monotonic()
    assert "did you mean" in pybuild("--check", pybuild.context(text)).out
    assert time.monotonic() - started < LIMIT


def test_PAR_05_syntax_is_never_run(pybuild: Pybuild) -> None:
    said = pybuild.refuse("# syntax=evil.invalid/frontend:1\nFROM scratch\n")
    assert "is not supported" in said and "never runs another frontend" in said


@pytest.mark.parametrize(
    "argument", ['["' + "a" * 10**5, "[" * 10**5, "[1" + "0" * 10**5 + "]", "[NaN]", '["\\ud800"]']
)
def test_PAR_06_json(pybuild: Pybuild, argument: str) -> None:
    """What is no array of texts is a shell command, or an error, soon."""
    started = time.monotonic()
    if len(argument) < 65000:
        pybuild(pybuild.context(f"FROM scratch\nCMD {argument}\n"))
    else:
        refused(pybuild, f"FROM scratch\nCMD {argument}\n".encode())
    assert time.monotonic() - started < LIMIT


@pytest.mark.parametrize(
    "text",
    ["sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:../../x", "sha512:" + "0" * 128, "md5:0", ""],
)  # fmt: skip
def test_PAR_07_digests(text: str) -> None:
    with pytest.raises(CacheError):
        digest(text)


@pytest.mark.parametrize(
    "text", ["a/../b", "h:p/x", "a" * 2000, "x:" + "t" * 129, "é/x", "-a", "a//b", "a@b", "A"]
)
def test_PAR_08_references(text: str) -> None:
    with pytest.raises(ReferenceError_):
        parse_reference(text)


def test_PAR_09_parsing_is_linear() -> None:
    """Twice the text takes about twice as long, whatever the text."""
    for unit in ("RUN a b c\n", 'ENV a=b c="d e"\n', "COPY --chown=1 a b /c/\n", "RUN a \\\n b\n"):
        times = []
        for size in (1000, 4000):
            started = time.process_time()
            parse("FROM scratch\n" + unit * size)
            times.append(time.process_time() - started)
        assert times[1] < 12 * times[0] + 0.2, unit


# -- SRC -----------------------------------------------------------------------------------


def test_SRC_05_mount_point_replaced_by_a_link(pybuild: Pybuild, tmp_path: Path) -> None:
    """Cleaning up follows no link that the step left where a mount point was."""
    victim = tmp_path / "victim"
    (victim / "b").mkdir(parents=True)
    text = (
        "FROM busybox\nRUN --mount=type=tmpfs,target=/a/b/c true\n"
        f"RUN --mount=type=tmpfs,target=/x/b umount /x/b; rmdir /x/b; rmdir /x; ln -s {victim} /x; ls -l /x\n"
    )
    pybuild("--network=none", "--allow=security.insecure", pybuild.context(text))
    assert (victim / "b").is_dir()


def test_SRC_05_cleanup_itself(tmp_path: Path) -> None:
    """The same without a step: a link in the upper directory leads nowhere."""
    from builder.run.mounts import _drop_points
    from cache.layer.snapshots import draft
    from cache.store import Store

    victim = tmp_path / "victim"
    (victim / "b").mkdir(parents=True)
    with Store(str(tmp_path / "store")) as store, draft(store, ()) as made:
        os.symlink(victim, os.path.join(made.upper, "a"))
        os.makedirs(os.path.join(made.upper, "c/d"))
        _drop_points(made, ["a", "a/b", "c", "c/d"])
        assert (victim / "b").is_dir() and os.listdir(made.upper) == ["a"]


@pytest.mark.parametrize(
    "option",
    [
        "bind-propagation=shared",
        "propagation=anything",
        "rw,dev,suid",
        '"source=a\nb"',
        "target=/x,options=dev",
        "z",
    ],
)
def test_SRC_06_mount_options(pybuild: Pybuild, option: str) -> None:
    pybuild.refuse(f"FROM busybox\nRUN --mount=type=bind,target=/m,{option} true\n", None, "--network=none")


@pytest.mark.parametrize("kind", ["-> /etc/shadow", "-> /dev/zero", "fifo"])
def test_SRC_07_passwd_of_the_image(pybuild: Pybuild, kind: str) -> None:
    """The image's own files are read, inside the image, and not for long."""
    text = "FROM busybox\nCOPY etc /etc/\nCOPY --chown=root:grp a /a\nRUN true\nUSER someone\nRUN true\n"
    context = pybuild.context(text, {"a": "1", "etc": {}})
    path = context / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(kind[3:])
    started = time.monotonic()
    pybuild("--network=none", context).failed()
    assert time.monotonic() - started < LIMIT


@pytest.mark.parametrize("dest", ["/../../../x", "../../../../x", "/a/../../../x", "//../x"])
def test_SRC_08_destinations(pybuild: Pybuild, dest: str) -> None:
    """SRC-08, SRC-09: nothing leaves the root, whatever the path says."""
    tree = pybuild.build(f"FROM scratch\nWORKDIR /w\nCOPY a {dest}\n", {"a": "1"}).tree()
    assert tree["x"] == "1" and not Path("/x").exists()


def test_SRC_09_names_from_outside(pybuild: Pybuild) -> None:
    """Ids of caches, secrets and stages are no paths."""
    text = (
        "FROM busybox\nRUN --mount=type=cache,id=../../../../tmp/x,target=/c touch /c/f\n"
        "RUN --mount=type=secret,id=../../etc/passwd test ! -e /run/secrets/passwd\n"
    )
    pybuild("--network=none", pybuild.context(text)).ok()
    assert not Path("/tmp/x").exists()
    assert pybuild("-t", "../../x", pybuild.context("FROM scratch\n")).code in (1, 2)


def test_SRC_16_dockerfile_that_is_a_link(pybuild: Pybuild, tmp_path: Path) -> None:
    """Out of the context only where -f says so."""
    (tmp_path / "outside").write_text("FROM scratch\n")
    context = pybuild.context(None)
    (context / "Dockerfile").symlink_to(tmp_path / "outside")
    pybuild(context).failed()
    pybuild("-f", context / "Dockerfile", context).ok()


@pytest.mark.parametrize("kind", ["link", "fifo", "huge", "latin-1"])
def test_SRC_17_ignore_file(pybuild: Pybuild, kind: str, tmp_path: Path) -> None:
    context = pybuild.context("FROM scratch\nCOPY . /c/\n", {"a": "1"})
    path = context / ".dockerignore"
    match kind:
        case "link":
            (tmp_path / "out").write_text("a\n")
            path.symlink_to(tmp_path / "out")
            assert "c/a" in pybuild.export(context).tree()  # it is not there
        case "fifo":
            os.mkfifo(path)
            assert "not a regular file" in pybuild(context).failed().err
        case "huge":
            path.write_bytes(b"#" * (2 << 20))
            assert "larger than 1 MiB" in pybuild(context).failed().err
        case _:
            path.write_bytes(b"\xe9\r\na\r\n")
            assert "c/a" not in pybuild.export(context).tree()


def test_SRC_18_many_patterns() -> None:
    """A thousand patterns on ten thousand paths, stars and all."""
    ignore = parse_ignore("\n".join(f"{'!' * (n % 2)}**/x{n}/**/y*{n}" for n in range(1000)))
    started = time.monotonic()
    for n in range(500):
        ignore.match(f"a{n}/b/c/d/e/f", None)
    assert time.monotonic() - started < LIMIT


def test_SRC_20_endless_file(pybuild: Pybuild) -> None:
    """A file of /proc has no size, and a sparse one is all holes."""
    context = pybuild.context("FROM scratch\nCOPY sparse /s\n", {})
    with (context / "sparse").open("wb") as file:
        file.truncate(64 << 20)
    started = time.monotonic()
    assert len(pybuild.export(context).read("s")) == 64 << 20
    assert time.monotonic() - started < 2 * LIMIT


def test_SRC_21_volume_outside(pybuild: Pybuild) -> None:
    """A volume is a word in the config, nothing is made of it."""
    image = pybuild.build("FROM busybox\nVOLUME /../../../etc\nRUN true\n", None, "--network=none")
    assert image.settings["Volumes"] == {"/../../../etc": {}}


def test_SRC_22_output_over_a_link(pybuild: Pybuild, tmp_path: Path) -> None:
    """What a link leads to is written, and only that; nothing in the archive leaves its folder."""
    target = tmp_path / "target"
    target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    pybuild(
        "-o", f"type=oci,dest={tmp_path}/link", pybuild.context("FROM scratch\nCOPY a /\n", {"a": "1"})
    ).ok()
    names = subprocess.check_output(["tar", "-tf", target], text=True).split()
    assert all(
        re.fullmatch(r"(blobs/(sha256/([0-9a-f]{64})?)?|index.json|oci-layout)", name) for name in names
    )


# -- SEC -----------------------------------------------------------------------------------


def test_SEC_02_secret_mount(pybuild: Pybuild) -> None:
    """SEC-03 too: read-only, mode 0400, no more than 500 KiB, and no stub in the layer."""
    text = (
        "FROM busybox\nRUN --mount=type=secret,id=s stat -c '%a %u %g' /run/secrets/s; "
        "grep /run/secrets/s /proc/mounts; ! echo x > /run/secrets/s\n"
    )
    context = pybuild.context(text)
    done = pybuild("--network=none", "--secret", "id=s,env=S", context, env={"S": "x"}).ok()
    assert "400 0 0" in done.err and re.search(r"tmpfs ro,", done.err)
    (pybuild.work / "big").write_bytes(b"x" * (501 << 10))
    big = pybuild(
        "--network=none", "--no-cache", "--secret", f"id=s,src={pybuild.work}/big", context
    ).failed()
    assert "larger than 500 KiB" in big.err


def test_SEC_04_secret_in_an_argument(pybuild: Pybuild) -> None:
    done = pybuild(pybuild.context("FROM scratch\nARG API_TOKEN\n")).ok()
    assert "SecretsUsedInArgOrEnv" in done.err


FIELDS: dict[str, tuple[str, str]] = {
    "chown": ("COPY a /a", "COPY --chown=1 a /a"),
    "chmod": ("COPY a /a", "COPY --chmod=600 a /a"),
    "link": ("COPY a /a", "COPY --link a /a"),
    "network": ("RUN true", "RUN --network=none true"),
    "security": ("RUN true", "RUN --security=insecure true"),
    "mount": ("RUN true", "RUN --mount=type=cache,target=/c true"),
}


@pytest.mark.parametrize(("first", "second"), FIELDS.values(), ids=FIELDS.keys())
def test_SEC_06_every_field_counts(fresh: Pybuild, first: str, second: str) -> None:
    files: Tree = {"a": "1"}
    for line in (first, second):
        context = fresh.context(f"FROM busybox\n{line}\n", files)
        assert fresh("--allow=security.insecure", context).ok().executed == 1


def test_SEC_07_link_in_a_bound_tree(pybuild: Pybuild) -> None:
    """A link that leads elsewhere is another tree."""
    context = pybuild.context(
        "FROM busybox\nRUN --mount=source=d,target=/m cat /m/l > /o\n",
        {"d": {"a": "1", "b": "2", "l": "-> a"}},
    )
    assert pybuild.export(context, "--network=none").read("o") == b"1"
    (context / "d/l").unlink()
    (context / "d/l").symlink_to("b")
    assert pybuild.export(context, "--network=none").read("o") == b"2"


def test_SEC_08_caches_of_other_owners(fresh: Pybuild) -> None:
    """Another owner is another cache."""
    text = (
        "FROM busybox\nRUN --mount=type=cache,id=x,target=/c touch /c/poison\n"
        "RUN --mount=type=cache,id=x,target=/c,uid=5 ls /c > /o\n"
    )
    assert fresh.build(text, None, "--network=none").read("o") == b""


@pytest.mark.parametrize("target", ["nonexist/../../../outside", "../../outside", "x/../.././../outside"])
def test_archive_links_that_climb_over_what_is_not_there(pybuild: Pybuild, target: str) -> None:
    """UNP: a link of an archive never leads out of where the archive is unpacked."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, target
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("l/file"))
    image = pybuild.build("FROM scratch\nADD evil /dest/in/\n", {"evil": data.getvalue()})
    assert set(image.tree()) == {"dest", "dest/in", "dest/in/l", "dest/in/outside", "dest/in/outside/file"}
