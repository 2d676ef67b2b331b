"""Text to nodes: every instruction in every form."""

from __future__ import annotations

import pytest
from parsing import HEAD, command, copied, fault, pairs, second
from pytest import param

from grammar import ast
from grammar.parse import KEYWORDS, parse, parse_instruction
from grammar.span import Span
from grammar.transform import RULES

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


def test_each_keyword_has_a_rule() -> None:
    assert {name.upper() for name in RULES} == set(KEYWORDS)


def test_every_keyword_is_known_in_any_case() -> None:
    """L2: nobody is told that a name is unknown."""
    for keyword in sorted({*KEYWORDS} - {"ARG"}):  # whose flags nobody looks at
        for name in (keyword.lower(), keyword.capitalize(), keyword.swapcase()):
            assert "unknown" not in fault(f"{HEAD}{name} --no-such-flag x").message.replace(
                "unknown flag", ""
            )
