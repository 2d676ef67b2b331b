"""Text to nodes: every instruction in every form, positions, and what is refused."""

from __future__ import annotations

import time

import pytest
from pytest import param

from grammar import ast
from grammar.errors import DockerfileError, excerpt
from grammar.parse import KEYWORDS, parse, parse_instruction
from grammar.span import Span

HEAD = "FROM scratch\n"


def second(text: str) -> ast.Instruction:
    """The one instruction after a FROM; its first line is 2."""
    (found,) = parse(HEAD + text).stages[0].instructions
    return found


def fault(text: str) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    return caught.value


def command(text: str) -> ast.Command | None:
    node = second(text)
    assert isinstance(node, ast.Run | ast.Cmd | ast.Entrypoint | ast.Healthcheck)
    return node.command


def pairs(text: str) -> list[tuple[str, str | None]]:
    node = second(text)
    assert isinstance(node, ast.Env | ast.Label | ast.Arg)
    return [(pair.key, pair.value) for pair in node.pairs]


def copied(text: str) -> tuple[tuple[str, ...], str]:
    node = second(text)
    assert isinstance(node, ast.Copy | ast.Add)
    return node.sources, node.dest


# -- commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK CMD"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("echo hi", ast.ShellForm("echo hi"), id="shell"),
        param("  a   'b  c' ", ast.ShellForm("a   'b  c'"), id="shell-keeps-inner-blanks"),
        param("echo $HOME ${x:-y}", ast.ShellForm("echo $HOME ${x:-y}"), id="T54-not-expanded"),
        param("a \\\n  b", ast.ShellForm("a   b"), id="L4-continuation-keeps-indent"),
        param('["a", "b c"]', ast.ExecForm(("a", "b c")), id="exec"),
        param('  [ "a" ,"b" ] ', ast.ExecForm(("a", "b")), id="exec-blanks"),
        param('["\\u00e9\\n\\"", ""]', ast.ExecForm(('é\n"', "")), id="exec-escapes"),
        param('["a", \\\n "b"]', ast.ExecForm(("a", "b")), id="exec-continued"),
        param("['a']", ast.ShellForm("['a']"), id="T57-single-quotes"),
        param('["a"', ast.ShellForm('["a"'), id="T57-open-bracket"),
        param('["a', ast.ShellForm('["a'), id="T57-open-string"),
        param('["a",]', ast.ShellForm('["a",]'), id="T57-final-comma"),
        param('["a"] b', ast.ShellForm('["a"] b'), id="T57-trailing-text"),
        param('["a", NaN]', ast.ShellForm('["a", NaN]'), id="T57-NaN-is-no-JSON"),
        param('{"a": "b"}', ast.ShellForm('{"a": "b"}'), id="object-is-shell"),
        param("[ -f x ] && y", ast.ShellForm("[ -f x ] && y"), id="T57-test-command"),
    ],
)
def test_command_forms(keyword: str, text: str, expected: ast.Command) -> None:
    assert command(f"{keyword} {text}") == expected


@pytest.mark.parametrize("keyword", ["CMD", "ENTRYPOINT"])
def test_empty_array_clears(keyword: str) -> None:
    """T56: an empty list, not nothing."""
    assert command(f"{keyword} []") == ast.ExecForm(())


@pytest.mark.parametrize("keyword", ["RUN", "CMD", "ENTRYPOINT", "SHELL", "VOLUME", "COPY", "ADD"])
@pytest.mark.parametrize("array", ['["a", 1]', '["a", ["b"]]', '[null, "b"]', '["a", {}]', "[true]"])
def test_array_of_other_than_strings(keyword: str, array: str) -> None:
    error = fault(f"{HEAD}{keyword} {array}")
    assert error.message == "when using JSON array syntax, arrays must be comprised of strings only"
    assert error.span == Span(2, 2, len(keyword) + 2, len(array))


def test_run_flags() -> None:
    node = second("RUN --mount=type=cache,target=/c --mount='type=bind' --network=none --security=insecure x")
    assert isinstance(node, ast.Run)
    assert [mount.value for mount in node.mounts] == ["type=cache,target=/c", "type=bind"]
    assert (node.network, node.security) == ("none", "insecure")
    assert node.mounts[1].span == Span(2, 2, 34, 19)
    assert node.command == ast.ShellForm("x")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        param("RUN -- --mount=x", "--mount=x", id="L11-double-dash-ends-flags"),
        param("RUN echo --mount=x", "echo --mount=x", id="L11-only-directly-after-keyword"),
        param("RUN \\\n  --network=none \\\n  x", "x", id="L11-on-continuation-lines"),
    ],
)
def test_where_flags_end(text: str, rest: str) -> None:
    assert command(text) == ast.ShellForm(rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("HEALTHCHECK NONE", (None, "", ""), id="none"),
        param("healthcheck none", (None, "", ""), id="none-lower"),
        param("HEALTHCHECK cmd x", (ast.ShellForm("x"), "", ""), id="cmd-lower"),
        param(
            "HEALTHCHECK --interval=5m \\\n --retries=3 CMD x", (ast.ShellForm("x"), "5m", "3"), id="flags"
        ),
    ],
)
def test_healthcheck(text: str, expected: tuple[ast.Command | None, str, str]) -> None:
    node = second(text)
    assert isinstance(node, ast.Healthcheck)
    assert (node.command, node.interval, node.retries) == expected


# -- here-documents ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("RUN <<EOF\na\n b\nEOF", [("EOF", "a\n b\n", True, -1)], id="run"),
        param("RUN <<EOF\nEOF", [("EOF", "", True, -1)], id="empty"),
        param("RUN <<'EOF'\n$x\nEOF", [("EOF", "$x\n", False, -1)], id="single-quoted"),
        param('RUN <<"EOF"\n$x\nEOF', [("EOF", "$x\n", False, -1)], id="double-quoted"),
        param("RUN <<E'O'F\n$x\nEOF", [("EOF", "$x\n", False, -1)], id="any-quote"),
        param("RUN <<-EOF\n\t\ta\n\t b\n\tEOF", [("EOF", "a\n b\n", True, -1)], id="tabs-stripped"),
        param("RUN <<EOF\na\r\n\r\nEOF\r", [("EOF", "a\r\n\r\n", True, -1)], id="line-ends-kept"),
        param("COPY <<E\\OF /d\n$x\nEOF", [("EOF", "$x\n", True, -1)], id="escaped-is-not-quoted"),
        param("RUN <<-EOF\n  EOF\nEOF", [("EOF", "  EOF\n", True, -1)], id="blanks-are-not-tabs"),
        param("RUN <<EOF\n\tEOF\nEOF", [("EOF", "\tEOF\n", True, -1)], id="indent-only-after-dash"),
        param("RUN 3<<EOF cat <&3\nx\nEOF", [("EOF", "x\n", True, 3)], id="fd"),
        param("RUN a <<A b <<B\n1\nA\n2\nB", [("A", "1\n", True, -1), ("B", "2\n", True, -1)], id="in-order"),
        param("RUN <<EOF\n# a\n\\\n\nEOF", [("EOF", "# a\n\\\n\n", True, -1)], id="body-is-raw"),
        param("RUN --network=none <<EOF\nx\nEOF", [("EOF", "x\n", True, -1)], id="after-a-flag"),
        param("run <<E\nx\nE", [("E", "x\n", True, -1)], id="lower-case"),
        param("RUN x \\\n <<EOF\na\nEOF", [("EOF", "a\n", True, -1)], id="on-a-continuation"),
        param("RUN << EOF\nx\nEOF", [("EOF", "x\n", True, -1)], id="blank-before-name"),
        param("RUN cat 3<< \t'E F' >&2\nx\nE F", [("E F", "x\n", False, 3)], id="blanks-before-quoted-name"),
        param("RUN echo $((1 << 2))\n2))", [("2))", "", True, -1)], id="blank-makes-a-shift-one"),
        param("COPY <<EOF /d\nx\nEOF", [("EOF", "x\n", True, -1)], id="copy"),
        param("ADD <<EOF /d\nx\nEOF", [("EOF", "x\n", True, -1)], id="add"),
    ],
)
def test_heredocs(text: str, expected: list[tuple[str, str, bool, int]]) -> None:
    node = second(text)
    assert isinstance(node, ast.Run | ast.Copy | ast.Add)
    assert [(h.name, h.content, h.expand, h.fd) for h in node.heredocs] == expected
    assert node.span == Span(2, 2 + text.count("\n"))


@pytest.mark.parametrize(
    "text",
    [
        param("RUN cat <<<EOF", id="here-string"),
        param("RUN echo '<<EOF'", id="quoted"),
        param('RUN ["cat", "<<EOF"]', id="json"),
        param("RUN echo $((1<<3))", id="shift"),
        param("RUN cat <<- EOF", id="blank-after-dash"),
        param("RUN cat <<< EOF", id="blank-in-here-string"),
        param("RUN cat '<< EOF'", id="blank-in-quotes"),
        param("RUN cat <<''", id="no-name"),
        param("CMD cat <<EOF", id="CMD-has-none"),
        param("ENTRYPOINT cat <<EOF", id="ENTRYPOINT-has-none"),
    ],
)
def test_no_heredoc(text: str) -> None:
    found = parse(f"{HEAD}{text}\nUSER next").stages[0].instructions
    assert isinstance(found[1], ast.User)


def test_heredoc_sources_mix_with_files() -> None:
    node = second("COPY a <<one b <<two /d/\n1\none\n2\ntwo")
    assert isinstance(node, ast.Copy)
    assert (node.sources, node.dest) == (("a", "b"), "/d/")
    assert [h.name for h in node.heredocs] == ["one", "two"]


def test_onbuild_keeps_heredoc_text() -> None:
    """T73: the stored trigger holds the bodies, and reads back as the same instruction."""
    node = second("ONBUILD RUN <<EOF sh\necho 1\nEOF")
    assert isinstance(node, ast.Onbuild)
    assert node.text == "RUN <<EOF sh\necho 1\nEOF"
    again = parse_instruction(node.text, Span(9, 9))
    assert isinstance(again, ast.Run) and isinstance(node.trigger, ast.Run)
    assert (again.command, again.heredocs) == (node.trigger.command, node.trigger.heredocs)


# -- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["COPY", "ADD"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("a /b", (("a",), "/b"), id="one"),
        param("a b\tc /d", (("a", "b", "c"), "/d"), id="T4-several-without-slash"),
        param('["a b", "c", "/d e"]', (("a b", "c"), "/d e"), id="json"),
        param('["a", "b" /c', (('["a",', '"b"'), "/c"), id="T57-not-json-is-words"),
        param('a ""', (("a",), '""'), id="T5-empty-destination"),
        param("a%20b ü\\ /d", (("a%20b", "ü\\"), "/d"), id="T23-names-are-literal"),
        param("a\u00a0b /d", (("a\u00a0b",), "/d"), id="L12-only-ASCII-blanks-separate"),
        param("*.go arr[[]0] /d/", (("*.go", "arr[[]0]"), "/d/"), id="T7-globs-untouched"),
    ],
)
def test_copy_words(keyword: str, text: str, expected: tuple[tuple[str, ...], str]) -> None:
    assert copied(f"{keyword} {text}") == expected


def test_copy_flags() -> None:
    node = second(
        "COPY --from=base --chown=${u}:g --chmod=u=rwX --link --parents=true"
        " --exclude=*.o --exclude='a b' a /b"
    )
    assert isinstance(node, ast.Copy)
    assert (node.from_, node.chown, node.chmod) == ("base", "${u}:g", "u=rwX")
    assert (node.link, node.parents, node.exclude) == (True, True, ("*.o", "a b"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        param("", (None, None), id="T32-three-states"),
        param("--unpack --keep-git-dir=false ", (True, False), id="bare-and-false"),
        param("--unpack=false --keep-git-dir=true ", (False, True), id="both-said"),
    ],
)
def test_add_switches(flags: str, expected: tuple[bool | None, bool | None]) -> None:
    node = second(f"ADD {flags}a /b")
    assert isinstance(node, ast.Add)
    assert (node.unpack, node.keep_git_dir) == expected


# -- variables -----------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["ENV", "LABEL"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("a=1 b=2", [("a", "1"), ("b", "2")], id="pairs"),
        param("a=", [("a", "")], id="empty"),
        param("a==b=c", [("a", "=b=c")], id="first-equals-splits"),
        param("a=\"x y\" b='p q'", [("a", '"x y"'), ("b", "'p q'")], id="T43-quotes-kept"),
        param("a=b\\ c d=e", [("a", "b\\ c"), ("d", "e")], id="T43-escaped-blank"),
        param('a="x\'y" b="\\" z"', [("a", '"x\'y"'), ("b", '"\\" z"')], id="T43-nested-quotes"),
        param("a=1 \\\n  b=2", [("a", "1"), ("b", "2")], id="T50-continued"),
        param("a=1\\\nb=2", [("a", "1b=2")], id="continuation-without-blank-joins"),
        param('a="x \\\n y"', [("a", '"x  y"')], id="continued-in-quotes"),
        param('"a.b"="c"', [('"a.b"', '"c"')], id="T50-quoted-key"),
        param("k a b  c", [("k", "a b  c")], id="T42-legacy-keeps-inner-blanks"),
        param("k   'a'  b=c  ", [("k", "'a'  b=c")], id="T42-legacy-trimmed"),
        param("k foo%sbar", [("k", "foo%sbar")], id="T43-percent"),
    ],
)
def test_key_values(keyword: str, text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(f"{keyword} {text}") == expected


def test_legacy_is_marked() -> None:
    old, new = parse(HEAD + "ENV a b\nLABEL a=b").stages[0].instructions
    assert isinstance(old, ast.Env) and isinstance(new, ast.Label)
    assert (old.legacy, new.legacy) == (True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("ARG a", [("a", None)], id="T45-no-value"),
        param("ARG a=", [("a", "")], id="T45-empty-value"),
        param("ARG a b=1 c='x y'", [("a", None), ("b", "1"), ("c", "'x y'")], id="T48-several"),
        param("ARG a=${b:-c}", [("a", "${b:-c}")], id="unexpanded"),
    ],
)
def test_arg(text: str, expected: list[tuple[str, str | None]]) -> None:
    assert pairs(text) == expected


def test_global_args_stand_before_the_first_from() -> None:
    """T46: scope is decided by place."""
    made = parse("ARG a=1\nARG b\nFROM x\nARG c\nFROM y")
    assert [arg.pairs[0].key for arg in made.global_args] == ["a", "b"]
    assert [len(stage.instructions) for stage in made.stages] == [1, 0]


# -- the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("FROM a", ("a", "", ""), id="plain"),
        param("FROM a:1@sha256:ab AS b", ("a:1@sha256:ab", "b", ""), id="named"),
        param("from A as Build-1.x_y", ("A", "build-1.x_y", ""), id="T63-name-lower-base-as-written"),
        param("FROM --platform=$BUILDPLATFORM ${a:-b}", ("${a:-b}", "", "$BUILDPLATFORM"), id="flag"),
        param("FROM a \\\n  AS b", ("a", "b", ""), id="continued"),
    ],
)
def test_from(text: str, expected: tuple[str, str, str]) -> None:
    start = parse(text).stages[0].start
    assert (start.base, start.name, start.platform) == expected


def test_duplicate_stage_names_are_allowed() -> None:
    """T67."""
    assert [stage.start.name for stage in parse("FROM a AS x\nFROM b AS x").stages] == ["x", "x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("WORKDIR /a b", ast.Workdir(Span(2, 2), "/a b"), id="T58-workdir-is-one-text"),
        param("USER u:g", ast.User(Span(2, 2), "u:g"), id="T60-user"),
        param("STOPSIGNAL $sig", ast.StopSignal(Span(2, 2), "$sig"), id="T52-stopsignal"),
        param("MAINTAINER a <b@c>", ast.Maintainer(Span(2, 2), "a <b@c>"), id="maintainer"),
        param("EXPOSE 80/UDP 1-3 $p", ast.Expose(Span(2, 2), ("80/UDP", "1-3", "$p")), id="T51-expose"),
        param("VOLUME /a  /b", ast.Volume(Span(2, 2), ("/a", "/b")), id="T53-words"),
        param('VOLUME ["/a b"]', ast.Volume(Span(2, 2), ("/a b",)), id="T53-json"),
        param("VOLUME [/a]", ast.Volume(Span(2, 2), ("[/a]",)), id="T57-volume-words"),
        param('SHELL ["/bin/sh", "-c"]', ast.Shell(Span(2, 2), ("/bin/sh", "-c")), id="shell"),
        param("ONBUILD  USER x", ast.Onbuild(Span(2, 2), "USER x", ast.User(Span(2, 2), "x")), id="onbuild"),
    ],
)
def test_single_values(text: str, expected: ast.Instruction) -> None:
    assert second(text) == expected


def test_every_keyword_is_known_in_any_case() -> None:
    """L2: nobody is told that a name is unknown."""
    for keyword in sorted({*KEYWORDS} - {"ARG"}):  # whose flags nobody looks at
        for name in (keyword.lower(), keyword.capitalize(), keyword.swapcase()):
            assert "unknown" not in fault(f"{HEAD}{name} --no-such-flag x").message.replace(
                "unknown flag", ""
            )


# -- lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("RUN a \\\n# c\n  b", "a   b", id="L3-comment-inside"),
        param("RUN a \\\n   # c \\\nb", "a b", id="L3-comment-cannot-continue"),
        param("RUN a \\\n\n\t\nb", "a b", id="L6-blank-lines-inside"),
        param("RUN a \\ \t\nb", "a b", id="L5-blanks-after-the-escape"),
        param("RUN a \\\\", "a \\\\", id="L5-doubled-escape-at-the-end"),
        param("RUN a \\", "a", id="L7-continuation-at-EOF"),
        param("RUN a \\\n\\\nb", "a b", id="L5-lone-escape"),
        param("  \tRUN a", "a", id="L4-leading-blanks"),
        param("RUN a # b", "a # b", id="comment-only-at-line-start"),
        param("RUN a`\\\nb", "a`b", id="other-escape-is-text"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_continuations(text: str, expected: str, newline: str) -> None:
    """L8: CRLF is the same."""
    (node,) = parse((HEAD + text).replace("\n", newline)).stages[0].instructions
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm(expected)


def test_crlf_leaves_no_trace() -> None:
    """L8."""
    made = parse("# escape=`\r\nFROM a AS b\r\nENV k v\r\nCOPY x y\r\n")
    assert made.stages == parse("# escape=`\nFROM a AS b\nENV k v\nCOPY x y\n").stages
    env, copy = made.stages[0].instructions
    assert isinstance(env, ast.Env) and isinstance(copy, ast.Copy)
    assert (made.stages[0].start.name, env.pairs[0].value, copy.dest) == ("b", "v", "y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("# escape=`\nFROM a\nRUN x `\n y \\\nUSER z", "x  y \\", id="grave-continues"),
        param("# escape=`\nFROM a\nRUN x ``\nUSER z", "x ``", id="L5-doubled-grave"),
        param("# escape=\\\nFROM a\nRUN x `\nUSER z", "x `", id="backslash-said"),
        param("#EsCaPe =  ` \nFROM a\nRUN x `\ny", "x y", id="key-any-case-blanks"),
        param("\ufeff# escape=`\nFROM a\nRUN x `\ny", "x y", id="L1-BOM-before"),
        param("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN x `\ny", "x y", id="after-syntax"),
        param("# hi\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="after-comment-is-comment"),
        param("\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="after-blank-is-comment"),
        param("# foo=bar\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="unknown-key-ends"),
        param("FROM a\n# escape=`\nRUN x \\\ny", "x y", id="after-instruction-is-comment"),
    ],
)
def test_escape_directive(text: str, expected: str) -> None:
    node = parse(text).stages[0].instructions[0]
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm(expected)


def test_grave_escape_leaves_windows_paths() -> None:
    made = parse("# escape=`\nFROM a\nENV p=c:\\dir\\ q=x` y\nCOPY a c:\\")
    env, copy = made.stages[0].instructions
    assert isinstance(env, ast.Env) and isinstance(copy, ast.Copy)
    assert [(p.key, p.value) for p in env.pairs] == [("p", "c:\\dir\\"), ("q", "x` y")]
    assert copy.dest == "c:\\"


def test_directives_are_kept() -> None:
    text = "# syntax = docker/dockerfile:1.20-labs\n# check=skip=all;error=true\nFROM a"
    assert parse(text).directives == ast.Directives(
        "docker/dockerfile:1.20-labs", "\\", "skip=all;error=true"
    )


def test_first_line_may_hold_a_BOM() -> None:
    """L1: it is no part of the first word nor of its column."""
    start = parse("\ufeffFROM a").stages[0].start
    assert (start.base, start.base_span) == ("a", Span(1, 1, 6, 1))


def test_source_lines_for_display() -> None:
    made = parse("FROM a\nRUN x \\\n # c\n   y\n\nUSER z")
    assert made.sources == {1: "FROM a", 2: "RUN x y", 6: "USER z"}


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        param("FROM a\nRUN x", 2, 2, id="one-line"),
        param("FROM a\n\n# c\nRUN x\n\n", 4, 4, id="comments-are-outside"),
        param("FROM a\nRUN x \\\n\n# c\n y\nUSER z", 2, 5, id="L15-continued"),
        param("FROM a\nRUN <<E\n1\n2\nE\n", 2, 5, id="L15-heredoc"),
    ],
)
def test_instruction_lines(text: str, first: int, last: int) -> None:
    assert parse(text).stages[0].instructions[0].span == Span(first, last)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("COPY aa b /d", [Span(2, 2, 6, 2), Span(2, 2, 9, 1)], id="columns"),
        param("  COPY  é b /d", [Span(2, 2, 9, 1), Span(2, 2, 11, 1)], id="indent-and-characters"),
        param(
            "COPY a \\\n   bb \\\n# c\n c /d",
            [Span(2, 2, 6, 1), Span(3, 3, 4, 2), Span(5, 5, 2, 1)],
            id="continued",
        ),
        param("COPY a a a /d", [Span(2, 2, 6, 1), Span(2, 2, 8, 1), Span(2, 2, 10, 1)], id="repeated"),
    ],
)
def test_source_spans(text: str, expected: list[Span]) -> None:
    node = second(text)
    assert isinstance(node, ast.Copy)
    assert list(node.source_spans) == expected


def test_spans_of_continued_words_end_with_their_line() -> None:
    """A word split by a continuation is shown on its first line, not past the end of it."""
    assert fault(HEAD + "RN\\\nU x").span == Span(2, 2, 1, 2)
    node = second('ENV a=1 b="x \\\n y z"')
    assert isinstance(node, ast.Env)
    assert [pair.span for pair in node.pairs] == [Span(2, 2, 5, 3), Span(2, 2, 9, 5)]


def test_trigger_spans_count_from_the_line() -> None:
    node = second("ONBUILD \\\n  COPY a /d")
    assert isinstance(node, ast.Onbuild) and isinstance(node.trigger, ast.Copy)
    assert node.trigger.source_spans == (Span(3, 3, 8, 1),)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "span"),
    [
        param("", "file with no instructions", None, id="L10-empty"),
        param("# a\n\n # b\n", "file with no instructions", None, id="L10-comments"),
        param("ARG a", "dockerfile contains no stages to build", None, id="T68-no-FROM"),
        param("RUN x", "no build stage in current context", Span(1, 1), id="before-FROM"),
        param(HEAD + "\nRNU x", "unknown instruction: RNU (did you mean RUN?)", Span(3, 3, 1, 3), id="L13"),
        param(HEAD + "QQQQ x", "unknown instruction: QQQQ", Span(2, 2, 1, 4), id="L13-no-guess"),
        param(HEAD + "  RUN\u00a0x y", "unknown instruction: RUN\u00a0x", None, id="L12-NBSP"),
        param("FROM", "FROM requires either one or three arguments", Span(1, 1, 1, 4), id="FROM"),
        param("FROM a b", "FROM requires either one or three arguments", Span(1, 1, 1, 4), id="FROM-2"),
        param("FROM a AZ b", "FROM requires either one or three", Span(1, 1, 1, 4), id="FROM-AZ"),
        param(
            "FROM a AS 1b",
            "name can't start with a number or contain symbols",
            Span(1, 1, 11, 2),
            id="stage-1",
        ),
        param("FROM a AS b/c", "invalid name for build stage", Span(1, 1, 11, 3), id="stage-name-symbol"),
        param(HEAD + "ENV", "ENV requires at least one argument", Span(2, 2, 1, 3), id="ENV"),
        param(HEAD + "ENV a", "ENV must have two arguments", Span(2, 2, 5, 1), id="ENV-no-value"),
        param(HEAD + "LABEL =a", "LABEL names can not be blank", Span(2, 2, 7, 2), id="LABEL-blank"),
        param(HEAD + "ARG =a", "ARG names can not be blank", Span(2, 2, 5, 2), id="ARG-blank"),
        param(HEAD + "ARG", "ARG requires at least one argument", Span(2, 2, 1, 3), id="ARG"),
        param(HEAD + "ENV a=b \\\n  c", 'can\'t find = in "c"', Span(3, 3, 3, 1), id="ENV-word"),
        param(
            HEAD + "COPY a",
            "only one was provided. Destination could not be determined",
            Span(2, 2, 1, 4),
            id="COPY-one",
        ),
        param(HEAD + "ADD", "ADD requires at least two arguments", Span(2, 2, 1, 3), id="ADD-none"),
        param(HEAD + 'COPY ["a"]', "COPY requires at least two arguments", None, id="COPY-json-one"),
        param(
            HEAD + "COPY a <<E\nE", "cannot accept a heredoc as a destination", Span(2, 2, 8, 3), id="dest"
        ),
        param(HEAD + "RUN <<EOF\nx\n EOF", "unterminated heredoc", Span(2, 2), id="heredoc-open"),
        param(HEAD + "WORKDIR", "WORKDIR requires exactly one argument", Span(2, 2, 1, 7), id="WORKDIR"),
        param(HEAD + "USER ", "USER requires exactly one argument", Span(2, 2, 1, 4), id="USER"),
        param(HEAD + "EXPOSE", "EXPOSE requires at least one argument", Span(2, 2, 1, 6), id="EXPOSE"),
        param(HEAD + "VOLUME []", "VOLUME requires at least one argument", None, id="T53-none"),
        param(HEAD + 'VOLUME ["/a", ""]', "can not be an empty string", Span(2, 2, 8, 10), id="T53-empty"),
        param(HEAD + "SHELL sh -c", "SHELL requires the arguments to be in JSON form", None, id="SHELL"),
        param(HEAD + "SHELL []", "SHELL requires at least one argument", None, id="SHELL-none"),
        param(HEAD + "HEALTHCHECK", "HEALTHCHECK requires at least one argument", None, id="HEALTH"),
        param(HEAD + "HEALTHCHECK NONE x", "NONE takes no arguments", Span(2, 2, 18, 1), id="NONE"),
        param(HEAD + "HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD", None, id="HEALTH-CMD"),
        param(HEAD + "HEALTHCHECK x", 'Unknown type "X" in HEALTHCHECK', Span(2, 2, 13, 1), id="HEALTH-x"),
        param(HEAD + "ONBUILD ONBUILD RUN x", "`ONBUILD ONBUILD` isn't allowed", None, id="OO"),
        param(HEAD + "ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger", None, id="OFROM"),
        param(HEAD + "ONBUILD maintainer x", "MAINTAINER isn't allowed as an ONBUILD", None, id="OMAINT"),
        param(
            HEAD + "COPY \\\n  --chwon=a b c",
            "unknown flag: --chwon (did you mean chown?)",
            Span(3, 3, 3, 9),
            id="unknown",
        ),
        param(
            HEAD + "COPY --link --link a b", "Duplicate flag specified: link", Span(2, 2, 13, 6), id="double"
        ),
        param(HEAD + "COPY --chown a b", "Missing a value on flag: chown", Span(2, 2, 6, 7), id="value"),
        param(HEAD + "COPY --link=1 a b", "boolean value for flag link", Span(2, 2, 6, 8), id="flag-bool"),
        param(HEAD + "USER --x u", "unknown flag: --x", Span(2, 2, 6, 3), id="flag-on-flagless"),
        param("# escape=x\nFROM a", "invalid escape token 'x' does not match ` or \\", None, id="escape"),
        param("# escape=`\n# escape=`\nFROM a", "only one escape parser directive", None, id="twice"),
        param("# syntax=evil/x:1\nFROM a", "syntax 'evil/x:1' is not supported", None, id="syntax"),
    ],
)
def test_faults(text: str, message: str, span: Span | None) -> None:
    error = fault(text)
    assert message in error.message
    assert str(error) == error.message
    if span is not None:
        assert error.span == span


def test_directive_faults_name_their_line() -> None:
    assert fault("# syntax=docker/dockerfile:1\n# escape=x\nFROM a").span == Span(2, 2)
    assert fault("# escape=`\n# syntax=evil/x:1\nFROM a").span == Span(2, 2)


def test_instruction_outside_a_file() -> None:
    """A trigger's fault stands where the caller says."""
    assert parse_instruction("USER x", Span(7, 7)) == ast.User(Span(1, 1), "x")
    with pytest.raises(DockerfileError, match="unknown instruction: RNU") as caught:
        parse_instruction("RNU x", Span(7, 7))
    assert caught.value.span == Span(7, 7)
    for text in ("", "# only a comment", "USER a\nUSER b"):
        with pytest.raises(DockerfileError, match="not one instruction"):
            parse_instruction(text, Span(7, 7))


def test_instruction_outside_a_file_with_its_escape() -> None:
    node = parse_instruction("RUN a `\n b \\", Span(1, 1), "`")
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm("a  b \\")


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        param(
            "a\nb\nc d\ne\nf\ng",
            Span(3, 3, 3, 1),
            "f:3\n 1 |     a\n 2 |     b\n 3 | >>> c d\n   |       ^\n 4 |     e\n 5 |     f",
            id="caret",
        ),
        param("  a b\nc", Span(1, 2), "f:1\n 1 | >>>   a b\n   |       ^^^\n 2 | >>> c", id="whole-lines"),
        param("\ta b", Span(1, 1, 4, 1), "f:1\n 1 | >>> \ta b\n   |     \t  ^", id="tabs-line-up"),
        param("a", Span(1, 1, 1, 3), "f:1\n 1 | >>> a\n   |     ^^^", id="width"),
        param("a\x0cb\nc", Span(2, 2), "f:2\n 1 |     a\x0cb\n 2 | >>> c\n   |     ^", id="form-feed"),
        param("a\x85\u2028b\nc", Span(2, 2), "f:2\n 1 |     a\x85\u2028b\n 2 | >>> c\n   |     ^", id="NEL"),
        param("a\r\nb", Span(2, 2), "f:2\n 1 |     a\n 2 | >>> b\n   |     ^", id="CRLF"),
    ],
)
def test_excerpt(text: str, span: Span, expected: str) -> None:
    """Lines are those the parser counts: a line feed ends one, nothing else does."""
    assert excerpt("f", text, span) == expected


# -- hostile text --------------------------------------------------------------------------

LIMIT = 65535


def test_longest_line() -> None:
    """L9: bytes count, not characters."""
    assert command("RUN " + "x" * (LIMIT - 4)) == ast.ShellForm("x" * (LIMIT - 4))
    for text in ("RUN " + "x" * (LIMIT - 3), "RUN " + "é" * (LIMIT // 2)):
        error = fault(f"{HEAD}{text}\n")
        assert error.message == f"dockerfile line greater than max allowed size of {LIMIT}"
        assert error.span == Span(2, 2)


@pytest.mark.parametrize(
    "text",
    [
        param("CMD " + "[" * 60_000, id="deep-array"),
        param("CMD " + "[" * 30_000 + "]" * 30_000, id="deep-closed-array"),
        param("CMD [" + "9" * 60_000 + "]", id="long-number"),
        param("ENV a=" + "'" * 60_001, id="many-quotes"),
        param("ENV " + "a=\\ " * 15_000, id="many-escapes"),
        param("COPY " + "--exclude=a" * 5_000 + " a b", id="long-flag"),
        param("COPY " + "--exclude=a " * 5_000 + "a b", id="many-flags"),
        param("RUN " + "<<A " * 15_000, id="many-heredocs-open"),
        param("\\", id="lone-escape"),
        param("\\\n\\ \n# c\n\n", id="only-escapes"),
        param("RUN x \\\n" + "\\\n" * 50_000, id="many-continuations"),
        param("ONBUILD " * 8_000, id="deep-onbuild"),
        param("RUN x\x00y\nENV a=\x00 \x00=b\nCOPY \x00 /\x00", id="NUL"),
        param("RUN \udcff\udc80\nENV a=\udcff\n\udcff x", id="not-UTF-8"),
        param("\x00" * 60_000, id="only-NUL"),
        param("COPY " + "a " * 30_000 + "/d", id="many-sources"),
        param("USER a\n" * 10_000, id="many-instructions"),
    ],
)
def test_hostile_text_ends_soon(text: str) -> None:
    start = time.process_time()
    try:
        parse(HEAD + text)
    except DockerfileError as error:
        excerpt("f", HEAD + text, error.span or Span(1, 1))
    assert time.process_time() - start < 5
