"""ADD of URLs, from servers on loopback (T32, T33, T40, T102, T108)."""

from __future__ import annotations

import gzip
import http.server
import signal
import subprocess
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archives import PLAIN
from harness import PYBUILD, Pybuild
from rootless import command
from servers import Misbehaving, send

pytestmark = pytest.mark.e2e

MODIFIED = "Sun, 09 Sep 2001 01:46:40 GMT"


def test_file(pybuild: Pybuild, web: Misbehaving) -> None:
    """T33: mode 0600, the time that the server says; history shows the URL."""
    web.serve("/a/f.txt", b"hello", Last_Modified=MODIFIED)
    url = f"http://{web.host}/a/f.txt?x=1#y"
    image = pybuild.build(f"FROM scratch\nADD {url} /x\nADD {url} /d/\n")
    for name in ("x", "d/f.txt"):
        entry, data = image.root()[name]
        assert (entry.mode, entry.uid, entry.gid, entry.mtime, data) == (0o600, 0, 0, 1_000_000_000, b"hello")
    assert image.history[0]["created_by"] == f"ADD {url} /x # buildkit"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", "__unnamed__"),
        ("/", "__unnamed__"),
        ("/a/", "a"),
        ("/a/..", "__unnamed__"),
        ("/a/%2e%2e", "__unnamed__"),
        ("/a%20b", "a b"),
        ("/x/%2e%2e%2fescaped", "escaped"),
        ("/é", "é"),
    ],
)
def test_name(pybuild: Pybuild, web: Misbehaving, path: str, name: str) -> None:
    """T33, SRC-10: one component, whatever the URL says."""
    web.answers = defaultdict(lambda: lambda handler: send(handler, b"1"))
    image = pybuild.build(f"FROM scratch\nADD http://{web.host}{path} /d/\n")
    assert image.tree() == {"d": "DIR", f"d/{name}": "1"}


def test_name_too_long(pybuild: Pybuild, web: Misbehaving) -> None:
    assert "255 bytes" in pybuild.refuse(f"FROM scratch\nADD http://{web.host}/{'a' * 300} /d/\n")


def test_content_disposition_says_nothing(pybuild: Pybuild, web: Misbehaving) -> None:
    web.serve("/f", b"1", Content_Disposition='attachment; filename="../../etc/passwd"')
    assert pybuild.build(f"FROM scratch\nADD http://{web.host}/f /d/\n").tree() == {"d": "DIR", "d/f": "1"}


def test_archive_is_not_unpacked(pybuild: Pybuild, web: Misbehaving) -> None:
    """T32"""
    web.serve("/a.tgz", gzip.compress(PLAIN))
    url = f"http://{web.host}/a.tgz"
    image = pybuild.build(f"FROM scratch\nADD {url} /kept/\nADD --unpack=true {url} /un/\n")
    assert sorted(image.tree()) == ["kept", "kept/a.tgz", "un", "un/d", "un/d/f", "un/l"]


def test_owner_and_mode(pybuild: Pybuild, web: Misbehaving) -> None:
    web.serve("/f", b"1")
    image = pybuild.build(f"FROM scratch\nADD --chmod=755 --chown=5:6 http://{web.host}/f /x\n")
    entry = image.root()["x"][0]
    assert (entry.mode, entry.uid, entry.gid) == (0o755, 5, 6)


def test_revalidated(pybuild: Pybuild, web: Misbehaving) -> None:
    """T102, T108: asked each time, fetched when it changed, and all that follows hits until then."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        known = handler.headers.get("If-None-Match") == etag
        send(handler, b"" if known else body, status=304 if known else 200, ETag=etag)

    web.answers["/f"] = answer
    context = pybuild.context(f"FROM busybox\nADD http://{web.host}/f /x\nRUN cat /x > /y\n")
    etag, body = '"1"', b"one"
    pybuild("-t", "a", "--network=none", context).ok()
    assert pybuild("-t", "a", "--network=none", context).ok().cached == 3
    assert len(web.asked) == 2
    etag, body = '"2"', b"two"
    changed = pybuild("-t", "a", "--network=none", "--progress=plain", context).ok()
    assert changed.cached == 1
    assert pybuild("run", "a", "cat", "/y").ok().out == "two"
    etag = '"3"'  # the same file again
    assert pybuild("-t", "a", "--network=none", context).ok().cached == 3
    pybuild("-t", "a", "--network=none", "--no-cache", context).ok()
    assert "if-none-match" not in web.asked[-1][1]


def test_checksum(pybuild: Pybuild, web: Misbehaving) -> None:
    """T40; and a file whose checksum is known is not asked for again."""
    web.serve("/f", b"hello")
    good = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    context = pybuild.context(
        f"ARG S={good}\nFROM scratch\nARG S\nADD --checksum=$S http://{web.host}/f /x\n"
    )
    pybuild(context).ok()
    pybuild(context).ok()
    assert len(web.asked) == 1
    bad = "sha256:" + "0" * 64
    said = pybuild.refuse(f"FROM scratch\nADD --checksum={bad} http://{web.host}/f /x\n")
    assert f"digest mismatch for http://{web.host}/f: {good} (expected: {bad})" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ADD --checksum=sha256:1 http://x/f /x", "not a sha256 digest"),
        (f"ADD --checksum=sha256:{'0' * 64} http://x/f http://x/g /x", "for multiple sources"),
        (f"ADD --checksum=sha256:{'0' * 64} f /x", "checksum requires HTTP(S) or Git sources"),
        ("COPY http://x/f /x", "source can't be a URL for COPY"),
        ("COPY https://x/r.git /x", "source can't be a git ref for COPY"),
        ("COPY git@x:r /x", "source can't be a git ref for COPY"),
        ("ADD https://x/r.git?ref=a&ref=b /x", 'query "ref" has multiple values'),
        ("ADD https://x/r.git?tag=a&branch=b /x", "branch conflicts with tag"),
        ("ADD https://x/r.git?ref=a#b /x", 'ref conflicts: "b" vs "a"'),
        ("ADD https://x/r.git?what=1 /x", 'unexpected query "what"'),
        ("ADD https://x/r.git?submodules=maybe /x", 'invalid submodules value: "maybe"'),
        ("ADD --keep-git-dir=true https://x/r.git?keep-git-dir=0 /x", "inconsistent keep-git-dir"),
        ("ADD https://x/r.git#--upload-pack=evil /x", "is not the name of a branch"),
        ("ADD ssh://-oProxyCommand=evil/r.git /x", "names no host"),
        ("ADD --checksum=1 https://x/r.git?checksum=2 /x", "checksum mismatch"),
    ],
)
def test_refused(pybuild: Pybuild, line: str, said: str) -> None:
    """Before anything is asked (T40, SRC-13)."""
    assert said in pybuild.refuse(f"FROM scratch\n{line}\n", {"f": "1"})


@pytest.mark.parametrize("text", ["ext::sh -c evil", "file:///etc", "ftp://x/f"])
def test_other_schemes_are_paths(pybuild: Pybuild, text: str) -> None:
    """SRC-13"""
    assert "not found" in pybuild.refuse(f'FROM scratch\nADD ["{text}", "/x"]\n')


def test_errors_of_servers(pybuild: Pybuild, web: Misbehaving) -> None:
    def short(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"abc")

    web.answers["/short"] = short
    said = pybuild.refuse(f"FROM scratch\nADD http://{web.host}/none /x\n")
    assert f"http://{web.host}/none answered 404" in said and "Dockerfile:2" in said
    assert "broke off" in pybuild.refuse(f"FROM scratch\nADD http://{web.host}/short /x\n")


def test_credentials_are_not_shown(pybuild: Pybuild, web: Misbehaving) -> None:
    """SEC-05: not in history, not in progress, not in errors; but sent."""
    web.serve("/f", b"1")
    context = pybuild.context(f"FROM scratch\nADD http://me:hunter2@{web.host}/f /x\n")
    done = pybuild("-t", "a", "-o", "type=oci,dest=a.tar", context).ok()
    assert "hunter2" not in done.err and b"hunter2" not in (pybuild.work / "a.tar").read_bytes()
    assert web.asked[-1][1]["authorization"] == "Basic bWU6aHVudGVyMg=="
    refused = pybuild.refuse(f"FROM scratch\nADD http://me:hunter2@{web.host}/none /x\n")
    assert "hunter2" not in refused


SECRETIVE: list[tuple[str, tuple[str, ...]]] = [
    ("ADD http://me:hunter2@HOST/none /x", ()),
    ("ADD http://me:hunter2@HOST/none /x", ("--progress=rawjson",)),
    ("ADD --checksum=sha256:0 http://me:hunter2@HOST/none /x", ()),
    ("ADD http://me:hunter2@HOST/none.git /x", ()),
    ("ADD ssh://me:hunter2@HOST/x.git#main /x", ()),
    ("ADD http://me:hunt/er2@HOST/none /x", ()),
    ("COPY http://me:hunter2@HOST/none /x", ()),
    ("ARG U=http://me:hunter2@HOST\nADD $U/none /x", ()),
    ("WORKDIR x\nENV A=http://me:hunter2@HOST\nCOPY a b", ()),
    ("COPY --from=x a /b", ("--build-context", "x=http://me:hunter2@HOST/none.tar")),
    ("FROM http://me:hunter2@HOST/x", ()),
    ("ADD\nENV A http://me:hunter2@HOST", ()),
]


def test_credentials_are_kept_nowhere(web: Misbehaving, tmp_path: Path) -> None:
    """Whatever fails: in nothing that is printed, in no file of the store, in no argument of a process."""
    pybuild = Pybuild(tmp_path / "store", tmp_path)

    def said(number: int, line: str, options: tuple[str, ...]) -> str:
        context = pybuild.context("FROM scratch\n" + line.replace("HOST", web.host) + "\n", name=f"c{number}")
        given = [option.replace("HOST", web.host) for option in options]
        words, env = command(pybuild, context, *given, "--timeout", "4")
        log = tmp_path / f"log{number}"
        trace = ["strace", "-f", "-qq", "-s", "4000", "-e", "trace=execve", "-o", str(log)]
        words = [*trace, *words] if ".git" in line else words
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "\nerror: " in f"\n{done.stderr}", done.stderr
        return done.stdout + done.stderr + (log.read_text() if ".git" in line else "")

    with ThreadPoolExecutor(4) as pool:
        shown = list(pool.map(lambda item: said(item[0], *item[1]), enumerate(SECRETIVE)))
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("store/*") if path.is_file())
    assert kept and b"hunt" not in kept and "git" in "".join(shown)
    for text, given in zip(shown, SECRETIVE, strict=True):
        assert "hunt" not in text, given


def test_secret_for_a_host(pybuild: Pybuild, web: Misbehaving) -> None:
    web.serve("/f", b"1")
    context = pybuild.context(f"FROM scratch\nADD http://{web.host}/f /x\n")
    pybuild("--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN", context, env={"TOKEN": "t0ken"}).ok()
    assert web.asked[-1][1]["authorization"] == "Bearer t0ken"


def test_cancelled_while_a_server_is_silent(pybuild: Pybuild, web: Misbehaving) -> None:
    silent = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        silent.wait(30)

    web.answers["/f"] = answer
    context = pybuild.context(f"FROM scratch\nADD http://{web.host}/f /x\n")
    build = subprocess.Popen([PYBUILD, context], env=pybuild.environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not web.asked and time.monotonic() < end:
        time.sleep(0.02)
    started = time.monotonic()
    build.send_signal(signal.SIGINT)
    said = build.communicate(timeout=20)[1]
    silent.set()
    assert build.returncode == 130 and "cancelled" in said and "Traceback" not in said
    assert time.monotonic() - started < 3
