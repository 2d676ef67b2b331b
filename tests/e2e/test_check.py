"""Checks at the end of a build, --check and --call."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from harness import Pybuild

pytestmark = pytest.mark.e2e

CASING = "FromAsCasing: 'as' and 'FROM' keywords' casing do not match"
TEXT = "FROM scratch as base\nFROM base AS last\nCMD x\n"


def test_warnings_at_the_end(pybuild: Pybuild) -> None:
    """With an excerpt, also where everything is cached, and not with --quiet."""
    context = pybuild.context(TEXT)
    first = pybuild("-t", "a", context).ok().err
    assert f"WARNING: {CASING}\ncontext/Dockerfile:1\n 1 | >>> FROM scratch as base\n" in first
    assert "2 warnings found" in first
    assert pybuild("-t", "a", context).ok().err == first
    assert "WARNING" not in pybuild("-q", context).ok().err


def test_check(pybuild: Pybuild) -> None:
    context = pybuild.context(TEXT)
    found = pybuild("--check", context)
    assert found.code == 1 and "https://docs.docker.com/go/dockerfile/rule/from-as-casing/" in found.out
    assert found.out.endswith("Check complete, 2 warnings have been found!\n")
    assert "image" not in found.err
    clean = pybuild("--check", pybuild.context("FROM scratch\n")).ok()
    assert clean.out == "Check complete, no warnings found.\n"


def test_check_executes_nothing(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM busybox\nRUN touch /x && false\nCOPY nothing /\n")
    pybuild("--check", context).ok()


def test_check_of_a_file_with_an_error(pybuild: Pybuild) -> None:
    """What was found before the error is shown with it."""
    context = pybuild.context("FROM scratch as base\nCOPY --from=$x a /b\n")
    done = pybuild("--check", context).failed()
    assert "FromAsCasing" in done.err and "variable expansion is not supported for --from" in done.err
    answer = json.loads(pybuild("--call=check,format=json", context).out)
    assert answer["buildError"]["location"] == {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}
    assert [item["ruleName"] for item in answer["warnings"]] == ["FromAsCasing"]


def test_check_before_a_line_that_cannot_be_read(pybuild: Pybuild) -> None:
    """What the lines before say on their own is found; what needs the whole file is not."""
    text = "FROM scratch as Base\nmaintainer somebody\nENV a b\nNONE\nMAINTAINER another\n"
    answer = json.loads(pybuild("--call=check,format=json", pybuild.context(text)).out)
    assert answer["buildError"]["message"].startswith("unknown instruction: NONE")
    assert [finding["ruleName"] for finding in answer["warnings"]] == [
        "StageNameCasing",
        "FromAsCasing",
        "MaintainerDeprecated",
    ]


def test_check_as_json(pybuild: Pybuild) -> None:
    context = pybuild.context(TEXT)
    done = pybuild("--call=check,format=json", context)
    answer = json.loads(done.out)
    assert done.code == 1
    assert answer["warnings"][0] == {
        "ruleName": "FromAsCasing",
        "description": "The 'as' keyword should match the case of the 'from' keyword",
        "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
        "detail": "'as' and 'FROM' keywords' casing do not match",
        "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]},
    }
    assert base64.b64decode(answer["sources"][0]["data"]).decode() == TEXT


@pytest.mark.parametrize("directive", [True, False])
def test_error(pybuild: Pybuild, directive: bool) -> None:
    """error=true: nothing is executed."""
    text = ("# check=error=true\n" if directive else "") + "FROM busybox as base\nRUN true\n"
    options = [] if directive else ["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true"]
    said = pybuild.refuse(text, None, *options)
    assert "lint violation found for rules: FromAsCasing" in said and CASING in said
    assert "RUN true" not in said


def test_argument_replaces_the_directive(pybuild: Pybuild) -> None:
    context = pybuild.context("# check=error=true\n" + TEXT)
    done = pybuild("--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all", context).ok()
    assert "WARNING" not in done.err
    both = "BUILDKIT_DOCKERFILE_CHECK=skip=ConsistentInstructionCasing;error=true"
    for text in (
        "#check=skip=all\n",
        "# syntax=docker/dockerfile:1\n# check=skip=FromAsCasing;error=false\n",
    ):
        said = pybuild.refuse(
            text + TEXT, None, "--build-arg", both
        )  # the file's own is no comment of a FROM
        assert "FromAsCasing" in said
    assert 'invalid check option "x"' in pybuild.refuse("# check=x=1\n" + TEXT)


OUTLINE = """# VERSION which one
ARG VERSION=1
ARG UNUSED=2
FROM scratch AS other
ARG ELSEWHERE=3
# app what is shipped
FROM busybox AS app
# MODE how
ARG MODE=fast
RUN --mount=type=secret,id=key,required --mount=type=cache,target=/c,id=cc true
"""


def test_outline(pybuild: Pybuild) -> None:
    context = pybuild.context(OUTLINE)
    text = pybuild("--call=outline", "--build-arg", "MODE=slow", context).ok().out
    assert text.split("\n\n")[0] == "TARGET:       app\nDESCRIPTION:  what is shipped"
    assert "MODE        slow    how" in text and "key      true" in text
    assert "ELSEWHERE" not in text and "UNUSED" not in text
    answer = json.loads(pybuild("--call=outline,format=json", context).ok().out)
    assert answer["name"] == "app" and answer["secrets"][0]["name"] == "key"
    assert [item["name"] for item in answer["args"]] == ["MODE"]


WHOLE = """# G1 one
ARG G1=1
ARG G2=2
ARG G3=$G2 G4=4
ARG UNUSED=$G4
ARG IMG=busybox
ARG TWICE=1
ARG TWICE=$TWICE$G2
FROM $IMG AS base
ARG B1=$G1
ARG G1
RUN --mount=type=secret,id=s2 --mount=type=ssh,id=k,required true
RUN --mount=type=ssh true
FROM scratch AS other
ARG O1
ARG G4
RUN --mount=type=secret,id=other true
FROM base AS last
ARG \\
  Z1=1
ARG B1=again
ARG G3
ARG TARGETARCH
COPY --from=other a /
RUN --mount=type=secret,id=s1,required \\
  --mount=type=cache,target=/c,id=cc true
RUN --mount=type=secret,id=s2,required true
"""
# As BuildKit's head answers it: name, value, lines; "!" for what is required.
OUTLINES = {
    "last": ("G1 1 2; G2 2 3; G3 2 4; G4 4 4; IMG busybox 6; O1 - 15; Z1 1 19 20; B1 again 21",
             "other 17; s1! 25 26; s2! 27", "k! 12; default 13"),
    "base": ("G1 1 2; IMG busybox 6; B1 - 10", "s2 12", "k! 12; default 13"),
    "other": ("G4 4 4; O1 - 15", "other 17", ""),
}  # fmt: skip


@pytest.mark.parametrize("target", OUTLINES)
def test_whole_outline(pybuild: Pybuild, target: str) -> None:
    """What the target uses, in the order of the file, by the line where it is seen first."""
    context = pybuild.context(WHOLE)
    answer = json.loads(pybuild("--call=outline,format=json", f"--target={target}", context).ok().out)

    def shown(items: list[dict[str, Any]], values: bool) -> str:
        out = []
        for item in items:
            words = [item["name"] + "!" * item.get("required", False)]
            words += [item.get("value", "-")] if values else []
            ranges = item["location"]["ranges"]
            assert all(one["start"] == one["end"] for one in ranges)
            out.append(" ".join([*words, *(str(one["start"]["line"]) for one in ranges)]))
        return "; ".join(out)

    found = tuple(shown(answer.get(kind, []), kind == "args") for kind in ("args", "secrets", "ssh"))
    assert found == OUTLINES[target]
    assert "cache" not in answer


def test_targets(pybuild: Pybuild) -> None:
    context = pybuild.context(OUTLINE)
    text = pybuild("--call", "targets", context).ok().out
    assert text == "TARGET          DESCRIPTION\nother\napp (default)   what is shipped\n"
    answer = json.loads(pybuild("--call=targets,format=json", context).ok().out)
    assert [(item["name"], item["base"], item.get("default")) for item in answer["targets"]] == [
        ("other", "scratch", None),
        ("app", "busybox", True),
    ]


def test_unknown_method(pybuild: Pybuild) -> None:
    assert "--call 'what'" in pybuild("--call=what", pybuild.context(TEXT)).failed(2).err
