"""RUN --mount: what is there, what stays, what is kept out of the image (T85, T105, T106)."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, Tree
from oci import Image

pytestmark = pytest.mark.e2e

NONE = ("--network=none",)


def run(pybuild: Pybuild, lines: str, files: Tree | None = None, *options: str) -> Image:
    """Build *lines* on busybox."""
    return pybuild.build(f"FROM busybox\n{lines}\n", files, *NONE, *options)


WORKS: dict[str, tuple[str, str]] = {
    "context": ("RUN --mount=target=/m cat /m/d/f > /out", "f"),
    "context-file": ("RUN --mount=source=a,target=/m/x cat /m/x > /out", "a"),
    "context-folder": ("RUN --mount=src=d,dst=/m cat /m/f > /out", "f"),
    "context-link": ("RUN --mount=source=l,target=/m cat /m/f > /out", "f"),
    "relative-target": ("WORKDIR /w\nRUN --mount=target=m cat /w/m/a > /out", "a"),
    "workdir-is-the-default": ("WORKDIR /w\nRUN --mount=type=bind cat a > /out", "a"),
    "image": ("RUN --mount=from=busybox,source=/etc,target=/m grep -c root /m/group > /out", "1\n"),
    "variables": ("ENV t=/m s=d\nRUN --mount=target=$t,source=${s} cat /m/f > /out", "f"),
    "read-only": ("RUN --mount=target=/m (touch /m/x || echo no) > /out 2>/dev/null", "no\n"),
    "tmpfs": ("RUN --mount=type=tmpfs,target=/t,size=2m dd if=/dev/zero of=/t/x bs=1M count=9 2>/dev/null; stat -c %s /t/x > /out", "2097152\n"),
    "over-what-is-there": ("RUN mkdir /m && echo x > /m/x\nRUN --mount=target=/m ls /m | head -1 > /out", "Dockerfile\n"),
    "through-a-link": ("RUN mkdir /real && ln -s /real /m\nRUN --mount=target=/m/in cat /real/in/a > /out", "a"),
    "in-dev": ("RUN --mount=source=a,target=/dev/x/y cat /dev/x/y > /out", "a"),
    "inner-first": ("RUN --mount=source=a,target=/t/n/a --mount=type=tmpfs,target=/t cat /t/n/a > /out", "a"),
    "from-scratch": ("RUN --mount=from=scratch,target=/m ls /m | wc -l > /out", "0\n"),
    "read-only-tmpfs": ("RUN --mount=type=tmpfs,target=/t,ro (touch /t/x || echo no) > /out 2>/dev/null", "no\n"),
    "nested": ("RUN --mount=type=tmpfs,target=/t --mount=source=a,target=/t/n/a cat /t/n/a > /out", "a"),
    "cache-mode": ("RUN --mount=type=cache,target=/c,id=plain-bits,mode=7777 stat -c %a /c > /out", "777\n"),
    "user": ("RUN --mount=type=secret,id=s,uid=7,target=/s stat -c '%u %a' /s > /out", "7 400\n"),
}  # fmt: skip
CONTEXT: Tree = {"a": "a", "d": {"f": "f"}, "l": "-> d"}


@pytest.mark.parametrize(("lines", "out"), WORKS.values(), ids=WORKS.keys())
def test_works(pybuild: Pybuild, lines: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    image = run(pybuild, lines, CONTEXT, "--secret", f"id=s,src={tmp_path}/secret")
    assert image.read("out").decode() == out


LEAVES_NOTHING = {
    "bind": "RUN --mount=target=/m/n/o true",
    "bind-file": "RUN --mount=source=a,target=/m/n true",
    "T105-rw": "RUN --mount=target=/m,rw echo x > /m/a && rm -r /m/d && touch /m/new",
    "T105-tmpfs": "RUN --mount=type=tmpfs,target=/t touch /t/x",
    "cache": "RUN --mount=type=cache,target=/root/.cache/c touch /root/.cache/c/x",
    "secret": "RUN --mount=type=secret,id=s cat /run/secrets/s",
    "point-that-was-changed": "RUN --mount=type=cache,target=/u/v chmod -R 700 /u && chown -R 5 /u",
    "secret-in-etc": "RUN --mount=type=secret,id=s,target=/etc/s cat /etc/s",
}


@pytest.mark.parametrize("line", LEAVES_NOTHING.values(), ids=LEAVES_NOTHING.keys())
def test_leaves_nothing(pybuild: Pybuild, line: str, tmp_path: Path) -> None:
    """T85: no mount point, no changed parent."""
    (tmp_path / "secret").write_text("s")
    image = run(pybuild, line, CONTEXT, "--secret", f"id=s,src={tmp_path}/secret")
    assert image.layers[-1].names == []


def test_writes_beside_a_mount_stay(pybuild: Pybuild) -> None:
    image = run(pybuild, "RUN --mount=target=/m/n echo x > /m/y", CONTEXT)
    assert image.layers[-1].names == ["m", "m/y"]


def test_rw_writes_reach_nobody_else(pybuild: Pybuild) -> None:
    text = "FROM busybox AS s\nRUN echo 1 > /f\nFROM busybox\nRUN --mount=from=s,target=/s,rw echo 2 > /s/f; cat /s/f > /a\nRUN --mount=from=s,target=/s cat /s/f > /b\n"
    image = pybuild.build(text, None, *NONE)
    assert (image.read("a"), image.read("b")) == (b"2\n", b"1\n")


def test_source_of_a_stage_stays_inside(pybuild: Pybuild, tmp_path: Path) -> None:
    """SRC-01: a link to / in the stage is the stage's own root."""
    (tmp_path / "canary").write_text("x")
    text = (
        "FROM busybox AS s\nRUN ln -s / /l && ln -s ../../../../.. /m\nFROM busybox\n"
        f"RUN --mount=from=s,source=/l,target=/x,rw touch /x/BREAKOUT; test ! -e /x{tmp_path}/canary\n"
        f"RUN --mount=from=s,source=/m,target=/x,rw touch /x/BREAKOUT; test ! -e /x{tmp_path}/canary\n"
    )
    pybuild.build(text, None, *NONE)
    assert not Path("/BREAKOUT").exists()


REFUSED: dict[str, tuple[str, str]] = {
    "root": ("RUN --mount=target=/ true", 'invalid mount target "/"'),
    "proc": ("RUN --mount=target=/proc/x true", "inside /proc"),
    "type": ("RUN --mount=type=bnid,target=/m true", "did you mean bind"),
    "key": ("RUN --mount=targte=/m true", "did you mean target"),
    "bare": ("RUN --mount=foo true", "invalid field 'foo' must be a key=value pair"),
    "order": (
        "RUN --mount=required,type=secret,id=x true",
        "unexpected key 'required' for mount type 'bind'",
    ),
    "size": ("RUN --mount=type=tmpfs,target=/t,size=x true", "invalid value for size"),
    "from-variable": ("ARG s=x\nRUN --mount=from=$s,target=/m true", "doesn't support variable expansion"),
    "mode-of-bind": ("RUN --mount=target=/m,mode=700 true", 'mode not allowed for "bind" type mounts'),
    "sharing-of-bind": ("RUN --mount=target=/m,sharing=shared true", "invalid cache sharing"),
    "secret-of-nothing": ("RUN --mount=type=secret true", "one of source, target required"),
    "T106-required": ("RUN --mount=type=secret,id=x,required true", "secret x: not found"),
    "missing": ("RUN --mount=source=nope,target=/m true", '"/nope": not found'),
    "missing-in-stage": ("RUN --mount=from=busybox,source=nope,target=/m true", "not found"),
    "file-over-folder": ("RUN --mount=source=a,target=/etc true", "/etc"),
    "T65-later": (
        "RUN --mount=from=b,target=/m true\nFROM busybox AS b\nFROM scratch\nCOPY --from=0 / /x",
        'cannot mount from stage "b"',
    ),
}


@pytest.mark.parametrize(("lines", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(pybuild: Pybuild, lines: str, says: str) -> None:
    said = pybuild.refuse(f"FROM busybox\n{lines}\n", CONTEXT, *NONE)
    assert says in said and "Dockerfile:" in said and "^" in said


# -- caches --------------------------------------------------------------------------------


def test_cache_is_kept(fresh: Pybuild) -> None:
    """From step to step and from build to build; another id, owner or mode is another cache."""
    lines = [
        "RUN --mount=type=cache,target=/c echo 1 >> /c/log; cp /c/log /1",
        "RUN --mount=type=cache,target=/c echo 2 >> /c/log; cp /c/log /2",
        "RUN --mount=type=cache,id=/c,target=/d cp /d/log /3",
        "RUN --mount=type=cache,id=x,target=/c ls /c > /4",
        "RUN --mount=type=cache,target=/c,uid=5,mode=0700 stat -c '%u %a' /c > /5; ls /c >> /5",
    ]
    image = run(fresh, "\n".join(lines))
    assert [image.read(str(n)).decode() for n in range(1, 6)] == ["1\n", "1\n2\n", "1\n2\n", "", "5 700\n"]
    again = run(fresh, "RUN --mount=type=cache,target=/c cp /c/log /out")
    assert again.read("out") == b"1\n2\n"


def test_cache_begins_with_a_stage(fresh: Pybuild) -> None:
    text = (
        "FROM busybox AS s\nRUN mkdir /s && echo 1 > /s/f && chown 5:6 /s/f\nFROM busybox\n"
        "RUN --mount=type=cache,from=s,source=/s,target=/c cat /c/f > /1; stat -c '%u %g' /c/f >> /1; echo 2 > /c/f\n"
        "RUN --mount=type=cache,from=s,source=/s,target=/c cat /c/f > /2\n"
    )
    image = fresh.build(text, None, *NONE)
    assert (image.read("1"), image.read("2")) == (b"1\n5 6\n", b"2\n")


def test_what_a_cache_begins_with_is_an_input(fresh: Pybuild) -> None:
    """T99: the step runs again when that has changed, on a new cache."""
    text = (
        "FROM busybox AS s\nCOPY f /s/f\nFROM busybox\n"
        "RUN --mount=type=cache,target=/c,from=s,source=/s cat /c/f > /out\n"
    )
    for content in ("one", "two"):
        assert fresh.build(text, {"f": content}, *NONE).read("out").decode() == content


def test_caches_of_one_written_target(fresh: Pybuild) -> None:
    """The default id is the target as written, whatever the working directory; BUILDKIT_CACHE_MOUNT_NS parts them."""
    text = (
        "FROM busybox\nWORKDIR /a\nRUN --mount=type=cache,target=c touch c/x\n"
        "WORKDIR /b\nRUN --mount=type=cache,target=./c ls c > /out\n"
    )
    assert fresh.build(text, None, *NONE).read("out") == b"x\n"
    other = "FROM busybox\nWORKDIR /b\nRUN --mount=type=cache,target=c ls c > /out\n"
    image = fresh.build(other, None, *NONE, "--build-arg", "BUILDKIT_CACHE_MOUNT_NS=other")
    assert image.read("out") == b""


def test_hostile_cache_ids(fresh: Pybuild) -> None:
    """SRC-02: an id is a name, never a path; SRC-04: what is in a cache leads nowhere out of it."""
    for name in ("../../../tmp/x", "/etc", "a" * 4000, "..", "."):
        run(fresh, f"RUN --mount=type=cache,id={name},target=/c touch /c/x; ls /c")
    assert all(len(p.name.partition(".")[0]) == 64 for p in (fresh.store / "caches").iterdir())


def test_sharing(fresh: Pybuild) -> None:
    """Locked: one after the other. Private: each its own. Shared: together."""
    step = "echo in >> /c/log; sleep 0.7; echo out >> /c/log"
    expected = {"locked": ["in out in out"], "private": ["in out", "in out"], "shared": ["in in out out"]}
    for sharing, logs in expected.items():
        stages = "".join(
            f"FROM busybox AS {name}\nRUN --mount=type=cache,id={sharing},sharing={sharing},target=/c {step} # {sharing} {name}\nRUN touch /{name}\n"
            for name in ("a", "b")
        )
        before = set((fresh.store / "caches").iterdir())
        fresh.build(stages + "FROM busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\n", None, *NONE)
        made = sorted(set((fresh.store / "caches").iterdir()) - before)
        assert [" ".join((p / "log").read_text().split()) for p in made] == logs, sharing


def test_two_caches_in_two_orders(fresh: Pybuild) -> None:
    """Two steps that lock the same two caches do not wait for each other for ever."""
    one, two = (
        "--mount=type=cache,sharing=locked,id=1,target=/1",
        "--mount=type=cache,sharing=locked,id=2,target=/2",
    )
    text = "".join(
        f"FROM busybox AS s{n}\nRUN {' '.join(pair)} sleep 0.2; touch /f{n}\n"
        for n, pair in enumerate([(one, two), (two, one)] * 3)
    )
    copies = "".join(f"COPY --from=s{n} /f{n} /\n" for n in range(6))
    fresh.build(text + "FROM busybox\n" + copies, None, *NONE)


def test_waiting_for_a_cache_can_be_cancelled(fresh: Pybuild) -> None:
    line = "RUN --mount=type=cache,sharing=locked,target=/c"
    first = fresh.context(f"FROM busybox\nENV PYBUILD_TEST=1\n{line} echo here; sleep 1000\n", name="first")
    second = fresh.context(f"FROM busybox\nENV PYBUILD_TEST=1\n{line} true\n", name="second")
    builds = [
        subprocess.Popen([PYBUILD, *NONE, first], env=fresh.environment(), stderr=subprocess.PIPE, text=True)
    ]
    assert builds[0].stderr is not None
    while not builds[0].stderr.readline().endswith(" here\n"):
        pass
    builds.append(
        subprocess.Popen([PYBUILD, *NONE, second], env=fresh.environment(), stderr=subprocess.PIPE, text=True)
    )
    time.sleep(1)
    for build in reversed(builds):
        build.terminate()
        build.communicate(timeout=20)
        assert build.returncode == 130


# -- secrets -------------------------------------------------------------------------------

SECRET = "zYx-very-secret-0123456789"


def test_secret_stays_nowhere(fresh: Pybuild, tmp_path: Path) -> None:
    """SEC-01: not in a layer, the config, the store, the export or what is said."""
    (tmp_path / "file").write_text(SECRET)
    context = fresh.context(
        "FROM busybox\n"
        "RUN --mount=type=secret,id=f sha256sum < /run/secrets/f > /1\n"
        "RUN --mount=type=secret,id=e,env=TOKEN echo -n $TOKEN | sha256sum > /2\n"
        "RUN --mount=type=secret,id=e,env=TOKEN --mount=type=secret,id=e,target=/t/e env | grep -c TOKEN > /3; cmp /t/e /t/e\n"
    )
    archive = tmp_path / "out.tar"
    done = fresh(
        *NONE, "--secret", f"id=f,src={tmp_path}/file", "--secret", "id=e,env=SECRET_OF_TEST",
        "-t", "x", "-o", f"type=oci,dest={archive}", context, env={"SECRET_OF_TEST": SECRET},
    ).ok()  # fmt: skip
    from oci import read_image

    image = read_image(archive)
    assert image.read("1") == image.read("2")
    assert SECRET not in done.err + done.out
    found = [
        b for b, _, names in os.walk(fresh.store) for n in names if SECRET.encode() in Path(b, n).read_bytes()
    ]
    assert not found
    assert SECRET.encode() not in b"".join(layer.data for layer in image.layers)
    assert all(SECRET not in line["created_by"] for line in image.history)


def test_secret_is_no_input(pybuild: Pybuild) -> None:
    """T98: another content is no reason to run again."""
    context = pybuild.context("FROM busybox\nRUN --mount=type=secret,id=k cat /run/secrets/k\n")
    for value, executed in (("1", 1), ("2", 0)):
        done = pybuild(*NONE, "--secret", "id=k,env=K", context, env={"K": value}).ok()
        assert done.executed == executed


def test_secret_that_was_not_given(pybuild: Pybuild) -> None:
    """T106: no file, and an empty variable, as BuildKit's own code has it."""
    line = "RUN --mount=type=secret,id=no --mount=type=secret,id=no,env=NO ls /run/secrets 2>/dev/null | wc -l > /out; echo ${NO-unset} >> /out"
    assert run(pybuild, line).read("out") == b"0\n\n"


def test_secret_options(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\n")
    for option in (
        "src=/etc/passwd",
        "id=a,src=/nope",
        "id=a,env=NOPE_NOT_SET",
        "id=a,foo=b",
        "id=a,src=/etc/passwd,env=HOME",
    ):
        assert "--secret" in pybuild("--secret", option, context).failed(2).err


# -- cache keys ----------------------------------------------------------------------------


def test_bound_files_are_inputs(pybuild: Pybuild) -> None:
    """T99: what a bind mount shows is part of the key, whatever made it."""
    text = (
        "FROM busybox AS s\nARG v=0\nRUN mkdir /s && echo same > /s/f && echo $v > /other\nFROM busybox\n"
        "RUN --mount=from=s,source=/s,target=/s cat /s/f > /a\nRUN --mount=source=d,target=/d cat /d/f > /b\n"
    )
    context = pybuild.context(text, CONTEXT)
    pybuild(*NONE, context).ok()
    assert pybuild(*NONE, "--build-arg", "v=1", context).ok().executed == 1  # the stage, not who binds it
    (context / "a").write_text("changed, but not bound")
    assert pybuild(*NONE, context).ok().executed == 0
    (context / "d/f").write_text("new")
    image = pybuild.export(context, *NONE)
    assert image.read("b") == b"new"


@pytest.mark.parametrize("option", ["id=x,value=WORD", "id=x,value=a,WORD=b", "WORD", "=WORD,id=x"])
def test_secret_on_the_command_line(pybuild: Pybuild, option: str) -> None:
    """Where somebody gives the secret itself, it is not said again."""
    said = pybuild("--secret", option, pybuild.context("FROM scratch\nCOPY Dockerfile /\n")).failed(2).err
    assert "WORD" not in said and "id=ID[,src=FILE|env=NAME]" in said


@pytest.mark.parametrize(
    ("option", "emptied"),
    [("--no-cache", "a b"), ("--no-cache-filter=one", "a"), ("--no-cache-filter=two", "b"), ("--jobs=1", "")],
)
@pytest.mark.parametrize("isolation", ["namespaces", "chroot"])
def test_no_cache_empties(fresh: Pybuild, option: str, emptied: str, isolation: str) -> None:
    """The caches of the RUNs that are not taken from the cache, once in a build and before its first step."""
    text = (
        "FROM busybox AS one\nARG n\nRUN --mount=type=cache,id=a,target=/c echo $n >> /c/f; cat /c/f > /1\n"
        "RUN --mount=type=cache,id=a,target=/c echo x$n >> /c/f; cat /c/f > /2\n"
        "FROM one AS two\nCOPY f /\nRUN --mount=type=cache,id=b,from=busybox,source=/bin,target=/c "
        "echo $n >> /c/f; cat /c/f > /3\n"
    )
    context = fresh.context(text, {"f": ""})
    words = ("--network=none", f"--isolation={isolation}")
    fresh(*words, "--build-arg=n=old", context).ok()
    tree = fresh.export(context, *words, "--build-arg=n=new", option).tree()
    a, b = ("" if name in emptied.split() else f"old\n{also}" for name, also in (("a", "xold\n"), ("b", "")))
    assert (tree["1"], tree["2"], tree["3"]) == (f"{a}new\n", f"{a}new\nxnew\n", f"{b}new\n")


IN_PLACE = {
    "resolver": ("RUN --mount=type=cache,target=/etc/resolv.conf ls -ld /etc/resolv.conf | cut -c1-4 > /out", "drwx\n"),
    "hosts": ("RUN --mount=type=tmpfs,target=/etc/hosts ls -ld /etc/hosts | cut -c1-4 > /out", "drwx\n"),
    "file": ("RUN --mount=source=a,target=/etc/resolv.conf cat /etc/resolv.conf > /out", "a"),
    "script": ("RUN --mount=type=secret,id=s,mode=0700,target=/s /s > /out", "ran\n"),
    "script-of-all": ("USER 5\nRUN --mount=type=secret,id=s,mode=0555,target=/s /s > /tmp/o\nUSER 0\nRUN cp /tmp/o /out", "ran\n"),
    "no-script": ("RUN --mount=type=secret,id=s,mode=0600,target=/s (/s || echo $?) > /out 2>/dev/null", "126\n"),
}  # fmt: skip


@pytest.mark.parametrize("isolation", ["namespaces", "chroot"])
@pytest.mark.parametrize(("lines", "out"), IN_PLACE.values(), ids=IN_PLACE.keys())
def test_mounts_in_our_places(pybuild: Pybuild, lines: str, out: str, isolation: str, tmp_path: Path) -> None:
    """What stands in the place of a file of ours is what is meant; a secret with an x bit is run."""
    (tmp_path / "secret").write_text("#!/bin/sh\necho ran\n")
    text = f"RUN mkdir -m 1777 -p /tmp\n{lines}"
    given = (f"--isolation={isolation}", "--secret", f"id=s,src={tmp_path}/secret")
    assert run(pybuild, text, CONTEXT, *given).read("out").decode() == out


def test_mount_below_sys(pybuild: Pybuild) -> None:
    said = pybuild.refuse("FROM busybox\nRUN --mount=type=cache,target=/sys/x true\n", None, *NONE)
    assert "mounting at /sys/x: nothing can be made in /sys" in said
