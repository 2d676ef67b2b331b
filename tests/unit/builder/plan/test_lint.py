"""The build checks, rule by rule, and which of them a file wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from images import Images

from builder.errors import PlanError
from builder.plan.planner import plan
from builder.request import BuildRequest
from grammar.ignore import parse_ignore
from grammar.lint.linter import Linter, parse_checks
from grammar.lint.rules import RULES
from grammar.parse import parse

PAGES = Path(__file__).resolve().parents[4] / "docs/rules"


def found(text: str, ignore: str = "", args: dict[str, str] | None = None, every: bool = True) -> list[str]:
    """What is found, as ``line rule: message``."""
    file = parse(text)
    linter = Linter(file, parse_checks(file.directives.check), parse_ignore(ignore))
    request = BuildRequest(os.getcwd(), "", build_args=args or {})
    try:
        plan(file, request, Images("busybox", "debian"), linter, every)
    except PlanError:
        pass  # what was found before still counts
    return [f"{item.span.first} {item.rule.name}: {item.message}" for item in linter.findings]


CASING = "Command '{}' should match the case of the command majority ({})"
JSON = "JSON arguments recommended for {} to prevent unintended behavior related to OS signals"
MULTIPLE = (
    "Multiple {} instructions should not be used in the same stage because only the last one will be used"
)
SECRET = "Do not use ARG or ENV instructions for sensitive data ({})"
LEGACY = '"{0} key=value" should be used instead of legacy "{0} key value" format'

CASES: dict[str, tuple[str, list[str]]] = {
    "stage-name": (
        "FROM scratch AS BadStageName\n",
        ["1 StageNameCasing: Stage name 'BadStageName' should be lowercase"],
    ),
    "as-lower": (
        "FROM scratch as a\nFROM scratch AS b\n",
        ["1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"],
    ),
    "as-upper": (
        "from scratch AS a\nfrom scratch as b\n",
        ["1 FromAsCasing: 'AS' and 'from' keywords' casing do not match"],
    ),
    "empty-continuation": (
        "FROM scratch\nCOPY Dockerfile \\\n\n.\nCOPY Dockerfile \\\n.\n",
        ["4 NoEmptyContinuation: Empty continuation line"],
    ),
    "empty-to-the-end": (
        "FROM busybox\nRUN true \\\n\n\n",
        ["4 NoEmptyContinuation: Empty continuation line"],
    ),
    "empty-and-a-comment": (
        "FROM busybox\nRUN true \\\n\n# x\n \n",
        ["5 NoEmptyContinuation: Empty continuation line"],
    ),
    "nothing-after-an-escape": ("FROM busybox\nRUN true \\\n", []),
    "all-among-others": (
        "# check=skip=all,FromAsCasing\nFROM scratch as x\nmaintainer x\n",
        [
            "3 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label",
            "3 ConsistentInstructionCasing: " + CASING.format("maintainer", "uppercase"),
        ],
    ),
    "mixed-from": (
        "From scratch as a\nFROM scratch AS b\n",
        ["1 ConsistentInstructionCasing: " + CASING.format("From", "uppercase")],
    ),
    "mixed-from-lower": (
        "frOM scratch as a\nfrom scratch as b\n",
        ["1 ConsistentInstructionCasing: " + CASING.format("frOM", "lowercase")],
    ),
    "minority-lower": (
        "FROM scratch\ncopy Dockerfile /foo\nCOPY Dockerfile /bar\n",
        ["2 ConsistentInstructionCasing: " + CASING.format("copy", "uppercase")],
    ),
    "minority-upper": (
        "FROM scratch\ncopy Dockerfile /foo\ncopy Dockerfile /bar\n",
        ["1 ConsistentInstructionCasing: " + CASING.format("FROM", "lowercase")],
    ),
    "all-lower": ("from scratch\ncopy Dockerfile /foo\n", []),
    "duplicate": (
        "FROM scratch AS b\nFROM scratch AS b\n",
        ['2 DuplicateStageName: Duplicate stage name "b", stage names should be unique'],
    ),
    "reserved": (
        "FROM scratch AS scratch\nFROM scratch AS context\n",
        [
            f'{line} ReservedStageName: Stage name should not use the same name as reserved stage "{name}"'
            for line, name in ((1, "scratch"), (2, "context"))
        ],
    ),
    "cmd": ("FROM scratch\nCMD x\n", ["2 JSONArgsRecommended: " + JSON.format("CMD")]),
    "entrypoint": (
        "FROM scratch\nENTRYPOINT x\n",
        ["2 JSONArgsRecommended: " + JSON.format("ENTRYPOINT")],
    ),
    "own-shell": ('FROM scratch AS a\nSHELL ["/x"]\nFROM a\nCMD x\nENTRYPOINT x\n', []),
    "maintainer": (
        "FROM scratch\nMAINTAINER me\n",
        ["2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"],
    ),
    "from-declared": ("ARG base=scratch\nFROM $base\n", []),
    "from-declared-empty": ("ARG DEBUG\nFROM scratch${DEBUG}\nCOPY a .\n", []),
    "from-predefined": ("FROM --platform=$BUILDPLATFORM scratch\n", []),
    "from-undeclared": (
        "FROM --platform=$BULIDPLATFORM scratch\n",
        ["1 UndefinedArgInFrom: FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)"],
    ),
    "from-undeclared-part": (
        "ARG tag=latest\nFROM busybox:${tag}${version} AS b\n",
        ["2 UndefinedArgInFrom: FROM argument 'version' is not declared"],
    ),
    "workdir": (
        "FROM scratch\nWORKDIR app/\nWORKDIR more\n",
        [
            '2 WorkdirRelativePath: Relative workdir "app/" can have unexpected results '
            "if the base image changes"
        ],
    ),
    "workdir-of-a-stage": ("FROM scratch AS a\nWORKDIR /app\nFROM a\nWORKDIR sub\n", []),
    "var-declared": ("FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n", []),
    "var-of-a-stage": ("FROM busybox AS base\nARG foo=a\nFROM base\nCOPY $foo .\n", []),
    "var-of-the-shell": ("FROM busybox\nRUN echo $nothing\n", []),
    "var": (
        "FROM busybox\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n",
        ["2 UndefinedVar: Usage of undefined variable '$foo'"],
    ),
    "var-near": (
        "FROM busybox\nARG DIR_BINARIES=b/\nARG DIR_ASSETS=a/\nCOPY $DIR_ASSET .\n",
        ["4 UndefinedVar: Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)"],
    ),
    "var-path": (
        "FROM busybox\nENV PATH=$PAHT:/tmp/bin\n",
        ["2 UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?)"],
    ),
    "var-expose": (
        "FROM busybox\nEXPOSE $port 80\n",
        [],  # as BuildKit has it
    ),
    "var-once-a-line": (
        "FROM busybox\nENV one=$Xxxxx two=$Xxxxx$Xxxxx \\\n  three=$Xxxxx\nLABEL $Yyyyy=$Xxxxx four=$Yyyyy\n",
        [
            "2 UndefinedVar: Usage of undefined variable '$Xxxxx'",
            "4 UndefinedVar: Usage of undefined variable '$Yyyyy'",
            "4 UndefinedVar: Usage of undefined variable '$Xxxxx'",
        ],
    ),
    "var-heredoc": (
        "FROM busybox\nCOPY <<a /b\n$who\na\n",
        ["2 UndefinedVar: Usage of undefined variable '$who'"],
    ),
    "var-mount": (
        "FROM busybox\nRUN --mount=type=cache,target=/x$who x\n",
        ["2 UndefinedVar: Usage of undefined variable '$who'"],
    ),
    "multiple": (
        'FROM scratch\nENTRYPOINT ["a"]\nENTRYPOINT ["b"]\nCMD ["a"]\nCMD ["b"]\n'
        'HEALTHCHECK CMD ["a"]\nHEALTHCHECK CMD ["b"]\n',
        [
            f"{line} MultipleInstructionsDisallowed: {MULTIPLE.format(name)}"
            for line, name in ((2, "ENTRYPOINT"), (4, "CMD"), (6, "HEALTHCHECK"))
        ],
    ),
    "multiple-stages": ('FROM scratch AS a\nCMD ["a"]\nFROM a\nCMD ["b"]\n', []),
    "legacy": (
        "FROM scratch\nENV a b\nLABEL a b\n",
        [
            f"2 LegacyKeyValueFormat: {LEGACY.format('ENV')}",
            f"3 LegacyKeyValueFormat: {LEGACY.format('LABEL')}",
        ],
    ),
    "platform-of-base": (
        "FROM --platform=linux/s390x busybox AS s390x\n",
        [
            '1 InvalidBaseImagePlatform: Base image busybox was pulled with platform "{host}", '
            'expected "linux/s390x" for current build'
        ],
    ),
    "platform-redundant": (
        "FROM --platform=$TARGETPLATFORM scratch\n",
        [
            "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant "
            "as this is the default behavior"
        ],
    ),
    "platform-constant": (
        "FROM --platform=linux/amd64 scratch\n",
        [
            "1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value "
            '"linux/amd64"'
        ],
    ),
    "platform-in-the-name": ("FROM --platform=linux/amd64 scratch AS my_amd64_stage\n", []),
    "secrets": (
        "FROM scratch\nARG SECRET_PASSPHRASE\nENV password=bar secret=baz\nENV git_key=\nENV PUBLIC_KEY=\n"
        "ARG public_token\nENV keys=1 monkey=2 TOKEN_FILE=3\n",
        [
            f"{line} SecretsUsedInArgOrEnv: {SECRET.format(what)}"
            for line, what in (
                (2, 'ARG "SECRET_PASSPHRASE"'),
                (3, 'ENV "password"'),
                (3, 'ENV "secret"'),
                (4, 'ENV "git_key"'),
            )
        ],
    ),
    "secrets-global": ("ARG TOKEN=x\nFROM scratch\n", []),
    "default-arg": (
        "ARG VERSION\nFROM busybox:$VERSION\n",
        [
            "2 InvalidDefaultArgInFrom: Default value for ARG busybox:$VERSION results in empty or invalid "
            "base image name"
        ],
    ),
    "default-arg-given": ('ARG VERSION="latest"\nFROM busybox:${VERSION}\n', []),
    "descriptions": (
        "# check=experimental=InvalidDefinitionDescription\n# bar this\nARG foo=bar\n# BasE this\n"
        "FROM scratch AS base\n# bad\nARG version=1\n# bad\nARG foo=baz bar=qux\n#\nARG bit=bat\n",
        [
            f"{line} InvalidDefinitionDescription: Comment for {what} should follow the format: "
            f"`# {name} <description>`"
            for line, what, name in (
                (3, "ARG", "foo"),
                (5, "FROM", "base"),
                (7, "ARG", "version"),
                (9, "ARG", "<arg_key>"),
            )
        ],
    ),
    "descriptions-good": (
        "# check=experimental=all\n# foo this\nARG foo=bar\n\n# base this\nFROM scratch AS base\n\n"
        "# other\nCOPY a .\n",
        [],
    ),
    "descriptions-not-asked-for": ("# bad\nARG foo=bar\nFROM scratch\n", []),
    "expose-case": (
        "FROM scratch\nEXPOSE 80/TcP\n",
        ["2 ExposeProtoCasing: Defined protocol '80/TcP' in EXPOSE instruction should be lowercase"],
    ),
    "expose-host": (
        "FROM scratch\nEXPOSE 127.0.0.1:80:80\n",
        [
            "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, "
            "found '127.0.0.1:80:80'"
        ],
    ),
    "copy-several": (
        "FROM scratch\nCOPY a b /x\nCOPY a b /x/\nCOPY a b .\n",
        ["2 CopySeveralToOneFile: COPY has several sources, and its destination /x does not end in a slash"],
    ),
    "arg-after-env": (
        "FROM scratch\nENV X=1\nARG X=2\nARG X\n",
        ["3 ArgHidesEnv: ARG X hides the ENV X from later instructions of this stage, not from the image"],
    ),
    "skip-all": ("#check=skip=all\nFROM scratch as base\ncopy a .\n", []),
    "skip-some": (
        "#check=skip=ConsistentInstructionCasing\nFROM scratch as base\ncopy a .\n",
        ["2 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"],
    ),
    "skip-here": (
        "FROM scratch\n# check=skip=JSONArgsRecommended\nCMD x\n# check=nonsense\nENTRYPOINT x\n",
        ["5 JSONArgsRecommended: " + JSON.format("ENTRYPOINT")],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_rule(text: str, expected: list[str]) -> None:
    from builder.oci.model import host

    assert found(text) == [item.replace("{host}", str(host())) for item in expected]


def test_every_rule_is_tried_and_has_a_page() -> None:
    tried = {item.split()[1].rstrip(":") for _, expected in CASES.values() for item in expected}
    assert tried | {"CopyIgnoredFile"} == RULES.keys()
    pages = {page.stem for page in PAGES.glob("*.md")} - {"README"}
    assert pages == {rule.page for rule in RULES.values()}


@pytest.mark.parametrize(
    ("ignore", "line", "expected"),
    [
        ("a\n", "COPY a /b", ["Copy", "a"]),
        ("a\n", "ADD ./a/ /b", ["Add", "a"]),
        ("d\n", "COPY d/x /b", ["Copy", "d/x"]),
        ("*\n", "COPY . /b", ["Copy", "."]),
        ("a\n", "COPY . /b", []),
        ("a\n!a/b\n", "COPY a /b", []),
        ("x\n", "COPY a /b", []),
        ("", "COPY a /b", []),
    ],
)
def test_copy_of_what_is_ignored(ignore: str, line: str, expected: list[str]) -> None:
    said = [
        f'2 CopyIgnoredFile: Attempting to {how} file "{file}" that is excluded by .dockerignore'
        for how, file in [expected]
        if expected
    ] if expected else []  # fmt: skip
    assert found(f"FROM scratch\n{line}\n", ignore) == said


def test_default_argument_with_a_value_given() -> None:
    assert len(found("ARG IMAGE\nFROM $IMAGE\n", args={"IMAGE": "busybox"})) == 1


def test_only_what_is_built() -> None:
    """A build says nothing of stages it does not need, a check does."""
    text = "FROM scratch AS a\nENV a b\nFROM scratch\n"
    assert len(found(text)) == 1
    assert found(text, every=False) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skip", 'invalid check option "skip"'),
        ("what=1", 'invalid check option "what"'),
        ("skip=all;error = true", 'invalid check option "error "'),
        ("error=perhaps", 'failed to parse check option "error=perhaps"'),
    ],
)
def test_bad_options(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_checks(text)
