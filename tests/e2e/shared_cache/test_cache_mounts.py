"""Cache mounts in a shared cache: what they had, an empty store has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Pybuild
from shared_caches import NONE, manifest_of, saved_busybox

pytestmark = pytest.mark.e2e


def test_cache_mounts(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """They are there again on an empty machine, owners, links and times too; a machine's own come first."""
    text = """\
FROM busybox
ARG n
RUN --mount=type=cache,id=npm,target=/c --mount=type=cache,id=other,target=/o,uid=5,mode=0700 \
  ls -lnR /c /o | tee /listed; cat /c/d/x; mkdir -p /c/d; echo $n > /c/d/x; ln -f /c/d/x /c/y; ln -sf d /c/l; \
  chown 5:6 /c/d; touch -d @1000000000 /c/d/x; touch /o/z
"""
    context, cache = fresh.context(text), tmp_path / "cache"
    fresh(NONE, "--build-arg=n=one", f"--cache-to=type=local,dest={cache},mounts=true", context).ok()
    done = empty(NONE, "--build-arg=n=two", f"--cache-from=type=local,src={cache}", "-t", "a", context).ok()
    assert " one\n" in done.err
    listed = empty("run", "a", "cat", "/listed").ok().out
    assert "2001" in listed and "l -> d" in listed and "z" in listed
    owners = {
        line.split()[-1]: line.split()[1:4] for line in listed.splitlines() if line.startswith(("d", "-"))
    }
    assert owners["y"] == ["2", "0", "0"] and owners["d"] == ["2", "5", "6"]
    third = empty(NONE, "--build-arg=n=three", f"--cache-from=type=local,src={cache}", context).ok()
    assert " two\n" in third.err and " one\n" not in third.err


def test_cache_mounts_by_id(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    text = """\
FROM busybox
ARG n
RUN --mount=type=cache,id=a,target=/a --mount=type=cache,id=b,target=/b ls /a /b; touch /a/one /b/two
"""
    context, cache = fresh.context(text), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mounts=b", context).ok()
    done = empty(NONE, "--build-arg=n=2", f"--cache-from=type=local,src={cache}", context).ok()
    assert " two\n" in done.err and " one\n" not in done.err
    nothing = tmp_path / "nothing"
    fresh(NONE, f"--cache-to=type=local,dest={nothing}", context).ok()
    assert "mount.v1" in json.dumps(manifest_of(cache)) and "mount.v1" not in json.dumps(manifest_of(nothing))


def test_cache_mounts_survive_jobs_without_them(fresh: Pybuild, tmp_path: Path) -> None:
    """A job in which the step was cached hands its cache mount on."""
    text = "FROM busybox\nCOPY f /f\nRUN --mount=type=cache,id=m,target=/c echo run >> /c/log; wc -l /c/log\n"
    cache = tmp_path / "cache"
    said = ""
    for job, content in enumerate(("1", "1", "2")):
        made = Pybuild(tmp_path / f"job{job}", tmp_path)
        made("load", saved_busybox(fresh)).ok()
        context = made.context(text, {"f": content})
        options = (
            f"--cache-from=type=local,src={cache}",
            f"--cache-to=type=local,dest={cache},mode=max,mounts=true",
        )
        said = made(NONE, *options, context).ok().err
    assert " 2 /c/log" in said
