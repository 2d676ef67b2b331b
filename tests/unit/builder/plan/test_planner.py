"""Stages to steps, with a dictionary for a registry (T63 to T75, T101)."""

from __future__ import annotations

import os

import pytest
from images import Images

from builder.errors import PlanError
from builder.plan.graph import Plan
from builder.plan.planner import plan
from builder.request import BuildRequest
from grammar.lint.linter import Checks, Linter
from grammar.parse import parse


def planned(text: str, images: Images | None = None, target: str = "") -> Plan:
    made = BuildRequest(os.getcwd(), "", target=target)
    file = parse(text)
    return plan(file, made, images or Images("busybox", "debian"), Linter(file, Checks()))


def names(text: str, target: str = "") -> list[str]:
    return [step.name for step in planned(text, target=target).steps]


def test_step_names() -> None:
    """T75: FROM counts unless it is a stage or scratch; settings are no steps."""
    text = "FROM busybox AS base\nENV a=1\nRUN x\nFROM base\nWORKDIR /w\nFROM scratch AS last\nCOPY --from=1 / /\n"
    assert names(text) == [
        "[base 1/2] FROM busybox AS base",
        "[base 2/2] RUN x",
        "[stage-1 1/1] WORKDIR /w",
        "[last 1/1] COPY --from=1 / /",
    ]
    assert names("FROM busybox\nRUN x\n") == ["[1/2] FROM busybox", "[2/2] RUN x"]


def test_only_what_the_target_needs() -> None:
    """T66: other stages are neither built nor looked up."""
    images = Images("busybox")
    text = "FROM nowhere AS a\nRUN x\nFROM busybox AS b\nRUN y\nFROM b\nRUN z\n"
    assert [step.name for step in planned(text, images).steps] == [
        "[b 1/2] FROM busybox AS b",
        "[b 2/2] RUN y",
        "[stage-2 1/1] RUN z",
    ]
    assert images.asked == ["docker.io/library/busybox:latest"]
    assert names(text, target="b") == ["[b 1/2] FROM busybox AS b", "[b 2/2] RUN y"]


def test_copy_only_dependency() -> None:
    text = "FROM busybox AS a\nRUN x\nFROM busybox AS unused\nRUN u\nFROM scratch\nCOPY --from=a /x /\n"
    assert "[unused 2/2] RUN u" not in names(text) and "[a 2/2] RUN x" in names(text)


def test_case_of_names() -> None:
    """T63: defined in lower case, found in any by --from and --target, as written by FROM."""
    assert len(names("FROM busybox AS Base\nFROM scratch\nCOPY --from=BASE / /\n")) == 2
    assert len(names("FROM busybox AS Base\nRUN x\nFROM scratch\n", target="BASE")) == 2
    assert len(names("FROM busybox AS Base\nFROM base\nRUN x\n")) == 2
    with pytest.raises(PlanError):
        names("FROM busybox AS Base\nFROM Base\n")


def test_duplicate_names() -> None:
    """T67: the last definition before its use counts."""
    assert names("FROM busybox AS a\nRUN 1\nFROM busybox AS a\nRUN 2\nFROM a\nRUN 3\n")[1:] == [
        "[a 2/2] RUN 2",
        "[stage-2 1/1] RUN 3",
    ]


def test_a_stage_shadows_an_image() -> None:
    """T64."""
    images = Images("busybox")
    planned("FROM busybox AS debian\nRUN x\nFROM debian\nRUN y\n", images)
    planned("FROM busybox AS debian\nRUN x\nFROM scratch\nCOPY --from=debian / /\n", images)
    assert set(images.asked) == {"docker.io/library/busybox:latest"}


def test_from_an_image() -> None:
    """T64: an unknown name is an image, in --from too."""
    images = Images("busybox", "debian")
    planned("FROM busybox\nCOPY --from=debian /etc /e\n", images)
    assert images.asked[-1] == "docker.io/library/debian:latest"


def test_equal_steps_are_one() -> None:
    """T101: also across stages, as long as all below them is equal."""
    text = "FROM busybox AS a\nRUN x\nRUN y\nFROM busybox AS b\nRUN x\nRUN z\nFROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    assert names(text).count("[a 2/3] RUN x") == 1 and "[b 2/3] RUN x" not in names(text)
    assert len(names(text.replace("AS b\n", "AS b\nENV k=1\n"))) == len(names(text)) + 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nFROM a", 'cannot copy from stage "b"'),
        ("FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nCOPY --from=a / /", "on stage: a"),
        ("FROM scratch\nCOPY --from=0 / /\n", "circular dependency detected on stage: stage-0"),
        ("FROM scratch AS a\nFROM scratch AS a\nCOPY --from=a / /\n", "on stage: a"),
        ("FROM scratch\nCOPY --from=-1 / /\n", "invalid stage index -1"),
        ("FROM scratch AS a\nCOPY --from=a / /\n", "circular dependency detected on stage: a"),
        ("FROM scratch\nCOPY --from=1 / /\n", "invalid stage index 1"),
        ("FROM scratch AS a\nCOPY --from=9 / /\nFROM scratch\n", "invalid stage index 9"),
        ("FROM nowhere\n", "no docker.io/library/nowhere:latest"),
        ("FROM UPPER\n", "UPPER"),
        ("ARG v\nFROM $v\n", "base name ($v) should not be blank"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned(text)
    assert says in caught.value.message
    assert caught.value.span is not None


@pytest.mark.no_cover
def test_deep_and_wide() -> None:
    """Thousands of steps and stages plan without recursion, in a moment."""
    deep = "FROM busybox\n" + "RUN x\n" * 3000
    assert len(names(deep)) == 3001
    wide = "FROM busybox AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nRUN {n}\n" for n in range(500))
    assert len(names(wide)) == 501
