"""Instructions that say something of the image, triggers, here-documents (T51 to T75)."""

from __future__ import annotations

import pytest
from harness import Pybuild

pytestmark = pytest.mark.e2e

NONE = ("--network=none",)

SETTINGS: dict[str, tuple[str, dict[str, object], str]] = {
    "T53-words": ("VOLUME /b /a", {"Volumes": {"/a": {}, "/b": {}}}, "VOLUME [/b /a]"),
    "T53-json": ('VOLUME ["/a b"]', {"Volumes": {"/a b": {}}}, "VOLUME [/a b]"),
    "T53-variable": ("ENV d=/x\nVOLUME $d/y", {"Volumes": {"/x/y": {}}}, "VOLUME [/x/y]"),
    "T52-name": ("STOPSIGNAL SIGRTMIN+3", {"StopSignal": "SIGRTMIN+3"}, "STOPSIGNAL SIGRTMIN+3"),
    "T52-number": ("ENV n=9\nSTOPSIGNAL $n", {"StopSignal": "9"}, "STOPSIGNAL 9"),
    "shell": ('SHELL ["/bin/sh", "-ec"]', {"Shell": ["/bin/sh", "-ec"]}, "SHELL [/bin/sh -ec]"),
    "T54-shell-and-cmd": (
        'SHELL ["ls"]\nENTRYPOINT my entry', {"Shell": ["ls"], "Entrypoint": ["ls", "my entry"]},
        'ENTRYPOINT ["ls" "my entry"]',
    ),
    "health-shell": (
        "HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=3 CMD a | b",
        {"Healthcheck": {"Test": ["CMD-SHELL", "a | b"], "Interval": 90 * 10**9, "Timeout": 15 * 10**8, "Retries": 3}},
        "HEALTHCHECK {Test:[CMD-SHELL a | b] Interval:1m30s Timeout:1.5s StartPeriod:0s StartInterval:0s Retries:3}",
    ),
    "health-exec": (
        'HEALTHCHECK --start-period=2h --start-interval=100ms CMD ["a", "b"]',
        {"Healthcheck": {"Test": ["CMD", "a", "b"], "StartPeriod": 7200 * 10**9, "StartInterval": 10**8}},
        "HEALTHCHECK {Test:[CMD a b] Interval:0s Timeout:0s StartPeriod:2h0m0s StartInterval:100ms Retries:0}",
    ),
    "health-last-wins": (
        "HEALTHCHECK CMD a\nHEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}},
        "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected", "history"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings(pybuild: Pybuild, lines: str, expected: dict[str, object], history: str) -> None:
    image = pybuild.build(f"FROM scratch\n{lines}\n")
    assert {key: image.settings.get(key) for key in expected} == expected
    assert (image.history[-1]["created_by"], image.history[-1]["empty_layer"]) == (history, True)


def test_maintainer(pybuild: Pybuild) -> None:
    image = pybuild.build("FROM scratch\nMAINTAINER me <a@b>\n")
    assert image.config["author"] == "me <a@b>"
    assert image.history[-1]["created_by"] == "MAINTAINER me <a@b>"


BAD = {
    "volume-empty": ("ENV e=\nVOLUME $e", "VOLUME specified can not be an empty string"),
    "signal": ("STOPSIGNAL SIGNOPE", "invalid signal: SIGNOPE"),
    "signal-zero": ("STOPSIGNAL 0", "invalid signal: 0"),
    "interval": ("HEALTHCHECK --interval=1us CMD a", 'Interval "interval" cannot be less than 1ms'),
    "duration": ("HEALTHCHECK --timeout=5 CMD a", 'invalid duration "5"'),
    "retries": ("HEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)"),
    "heredoc-name": ("RUN <<a/b\n#!/bin/sh\na/b", "a/b"),
}


@pytest.mark.parametrize(("lines", "says"), BAD.values(), ids=BAD.keys())
def test_refused(pybuild: Pybuild, lines: str, says: str) -> None:
    said = pybuild.refuse(f"FROM scratch\n{lines}\n")
    assert says in said and "Dockerfile:" in said and "^" in said


# -- ONBUILD -------------------------------------------------------------------------------


def test_triggers_of_an_image(pybuild: Pybuild) -> None:
    """T71, T73: right after FROM, once, without history of ONBUILD itself; cleared in the child."""
    base = pybuild.context("FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\nONBUILD ENV e=1\n")
    pybuild(*NONE, "-t", "onbuild", base).ok()
    image = pybuild.build("FROM onbuild\nRUN cat /g > /h\n", {"f": "x"}, *NONE)
    assert (image.read("g"), image.read("h"), image.env["e"]) == (b"x", b"x", "1")
    assert "OnBuild" not in image.settings
    said = [line["created_by"] for line in image.history]
    assert not [line for line in said if "ONBUILD" in line]
    assert said.index("COPY f /f # buildkit") < said.index("RUN /bin/sh -c cat /g > /h # buildkit")


def test_trigger_that_runs(pybuild: Pybuild) -> None:
    """T71: also where the file itself runs nothing, and has a small name."""
    context = pybuild.context("FROM busybox\nONBUILD RUN echo hi > /o  \n")
    assert pybuild.export(context, "-t", "parent").settings["OnBuild"] == ["RUN echo hi > /o  "]
    context = pybuild.context(None, {"dockerfile": "FROM parent\n"})
    image = pybuild.export(context)
    assert image.read("o") == b"hi\n"
    assert image.history[-1]["created_by"] == "RUN /bin/sh -c echo hi > /o # buildkit"


def test_triggers_of_a_stage(pybuild: Pybuild) -> None:
    """T71: for the stage that is made FROM it, not for the stage after that."""
    text = "FROM busybox AS a\nONBUILD RUN echo x >> /f\nFROM a AS b\nFROM b\nRUN cp /f /g\n"
    assert pybuild.build(text, None, *NONE).read("g") == b"x\n"


def test_triggers_that_need_other_stages(pybuild: Pybuild) -> None:
    """T72: a stage that only a trigger names is built, with what it needs itself."""
    base = pybuild.context(
        "FROM busybox\nONBUILD COPY --from=files /f /f\nONBUILD RUN --mount=from=more,target=/m cp /m/n /n\n"
    )
    pybuild(*NONE, "-t", "onbuild-from", base).ok()
    text = (
        "FROM busybox AS root\nRUN echo 1 > /f\nFROM root AS files\nFROM busybox AS more\nRUN echo 2 > /n\n"
        "FROM busybox AS unused\nRUN false\nFROM onbuild-from\n"
    )
    image = pybuild.build(text, None, *NONE)
    assert (image.read("f"), image.read("n")) == (b"1\n", b"2\n")


def test_trigger_that_is_none(pybuild: Pybuild) -> None:
    """BuildKit stores what it cannot execute; it is wrong where it is triggered."""
    base = pybuild.context("FROM busybox\nONBUILD RNU true\n")
    pybuild("-t", "onbuild-bad", base).ok()
    said = pybuild.refuse("FROM onbuild-bad\n")
    assert "did you mean RUN" in said and "Dockerfile:1" in said


def test_trigger_with_a_here_document(pybuild: Pybuild) -> None:
    """T73: the text is kept whole."""
    base = pybuild.context("FROM busybox\nONBUILD RUN <<EOF\necho 1 > /a\necho 2 > /b\nEOF\n")
    pybuild(*NONE, "-t", "onbuild-heredoc", base).ok()
    assert pybuild.build("FROM onbuild-heredoc\n", None, *NONE).read("b") == b"2\n"


# -- here-documents ------------------------------------------------------------------------

SCRIPTS = {
    "script": ("RUN <<EOF\necho $((1+1)) > /out\nEOF", b"2\n"),
    "quoted": ("RUN <<'EOF'\necho \"$HOME\" > /out\nEOF", b"/root\n"),
    "interpreter": ("RUN <<EOF\n#!/bin/sh -e\necho $0 > /out\nEOF", b"/dev/pipes/EOF\n"),
    "tabs": ("RUN <<-EOF\n\techo \\\n\t\ta > /out\n\tEOF", b"a\n"),
    "command": ("RUN cat <<EOF > /out\n$HOME\nEOF", b"/root\n"),
    "two": ("RUN cat <<A - <<B > /out; cat <<C >> /out\na\nA\nb\nB\nc\nC", b"b\nc\n"),
    "descriptor": ("RUN cat 3<<EOF <&3 > /out\nx\nEOF", b"x\n"),
    "own-shell": ('SHELL ["/bin/busybox", "printf"]\nRUN <<EOF\nx\nEOF\nSHELL ["/bin/sh", "-c"]\nRUN echo y > /out', b"y\n"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "out"), SCRIPTS.values(), ids=SCRIPTS.keys())
def test_here_document_of_run(pybuild: Pybuild, lines: str, out: bytes) -> None:
    assert pybuild.build(f"FROM busybox\n{lines}\n", None, *NONE).read("out") == out


FILES = {
    "name": ("COPY <<a /d/\nx\na", {"d/a": "x\n"}),
    "renamed": ("COPY <<EOF /f\nx\nEOF", {"f": "x\n"}),
    "several": ('COPY <<a <<"b" /d/\n$v\na\n$v\nb', {"d/a": "val\n", "d/b": "$v\n"}),
    "mixed": ("COPY <<a f /d/\nx\na", {"d/a": "x\n", "d/f": "ctx"}),
    "special": ('COPY <<a <<b /d/\n"q" \'q\' \\$v \\\\\na\n\ttab\nb', {"d/a": "\"q\" 'q' $v \\\n", "d/b": "\ttab\n"}),
    "add": ("ADD <<a /d/\n$v\na", {"d/a": "val\n"}),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), FILES.values(), ids=FILES.keys())
def test_here_document_of_copy(pybuild: Pybuild, lines: str, expected: dict[str, str]) -> None:
    image = pybuild.build(f"FROM scratch\nARG v=val\n{lines}\n", {"f": "ctx"})
    assert {path: what for path, what in image.tree().items() if what != "DIR"} == expected


def test_here_document_keeps_its_line_ends(pybuild: Pybuild) -> None:
    image = pybuild.build("FROM scratch\nCOPY <<a /x\n1\r\n2\na\r\n")
    assert image.read("x") == b"1\r\n2\n"


def test_indented_here_document_for_the_shell(pybuild: Pybuild) -> None:
    """The shell takes the tabs away, history and triggers keep them."""
    text = "FROM busybox\nRUN cat <<-E > /o\n\thi\n\tE\nONBUILD RUN <<-E\n\techo x\n\tE\n"
    image = pybuild.build(text, None, "--network=none")
    assert image.read("o") == b"hi\n"
    assert "cat <<-E > /o\n\thi\nE # buildkit" in image.history[-1]["created_by"]
    assert image.settings["OnBuild"] == ["RUN <<-E\n\techo x\nE"]


def test_here_document_owner_and_mode(pybuild: Pybuild) -> None:
    root = pybuild.build("FROM scratch\nCOPY <<a /1\nx\na\nCOPY --chown=5 --chmod=u+x <<a /2\nx\na\n").root()
    assert {p: (e.uid, e.mode) for p, (e, _) in root.items()} == {"1": (0, 0o644), "2": (5, 0o744)}
