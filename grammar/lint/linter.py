"""Build checks: the table of rules, which of them a file wants, and those that its syntax decides.

The rules, their names and texts are BuildKit's and a few of our own for
what surprises people. Rules that need the values of variables or the base image are found
while the file is planned; this module knows them all. docs/rules has a page for each.
"""

from __future__ import annotations

import bisect
import posixpath
import re
from collections.abc import Iterable, Iterator

from grammar import ast
from grammar.ignore import Ignore
from grammar.span import Span
from grammar.structs import struct
from grammar.suggest import suggestion

_BUILDKIT_PAGES = "https://docs.docker.com/go/dockerfile/rule/"


@struct
class Rule:
    """One check. ``message`` is a format string; ``experimental`` ones have to be asked for."""

    name: str
    description: str
    message: str
    experimental: bool = False
    own: bool = False

    @property
    def page(self) -> str:
        """The name of its page in docs/rules: ``from-as-casing``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JSON)(?=[A-Z])", "-", self.name).lower()

    @property
    def url(self) -> str:
        """Where BuildKit documents it; "" for rules of our own."""
        return "" if self.own else f"{_BUILDKIT_PAGES}{self.page}/"


_TABLE = [
    Rule("StageNameCasing", "Stage names should be lowercase", "Stage name '{0}' should be lowercase"),
    Rule(
        "FromAsCasing",
        "The 'as' keyword should match the case of the 'from' keyword",
        "'{1}' and '{0}' keywords' casing do not match",
    ),
    Rule(
        "NoEmptyContinuation",
        "Empty continuation lines will become errors in a future release",
        "Empty continuation line",
    ),
    Rule(
        "ConsistentInstructionCasing",
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        "Command '{0}' should match the case of the command majority ({1})",
    ),
    Rule(
        "DuplicateStageName",
        "Stage names should be unique",
        'Duplicate stage name "{0}", stage names should be unique',
    ),
    Rule(
        "ReservedStageName",
        "Reserved words should not be used as stage names",
        'Stage name should not use the same name as reserved stage "{0}"',
    ),
    Rule(
        "JSONArgsRecommended",
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        "JSON arguments recommended for {0} to prevent unintended behavior related to OS signals",
    ),
    Rule(
        "MaintainerDeprecated",
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        "Maintainer instruction is deprecated in favor of using label",
    ),
    Rule(
        "UndefinedArgInFrom",
        "FROM command must use declared ARGs",
        "FROM argument '{0}' is not declared{1}",
    ),
    Rule(
        "WorkdirRelativePath",
        "Relative workdir without an absolute workdir declared within the build can have unexpected "
        "results if the base image changes",
        'Relative workdir "{0}" can have unexpected results if the base image changes',
    ),
    Rule(
        "UndefinedVar",
        "Variables should be defined before their use",
        "Usage of undefined variable '${0}'{1}",
    ),
    Rule(
        "MultipleInstructionsDisallowed",
        "Multiple instructions of the same type should not be used in the same stage",
        "Multiple {0} instructions should not be used in the same stage because only the last one "
        "will be used",
    ),
    Rule(
        "LegacyKeyValueFormat",
        "Legacy key/value format with whitespace separator should not be used",
        '"{0} key=value" should be used instead of legacy "{0} key value" format',
    ),
    Rule(
        "InvalidBaseImagePlatform",
        "Base image platform does not match expected target platform",
        'Base image {0} was pulled with platform "{2}", expected "{1}" for current build',
    ),
    Rule(
        "RedundantTargetPlatform",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        "Setting platform to predefined {0} in FROM is redundant as this is the default behavior",
    ),
    Rule(
        "SecretsUsedInArgOrEnv",
        "Sensitive data should not be used in the ARG or ENV commands",
        'Do not use ARG or ENV instructions for sensitive data ({0} "{1}")',
    ),
    Rule(
        "InvalidDefaultArgInFrom",
        "Default value for global ARG results in an empty or invalid base image name",
        "Default value for ARG {0} results in empty or invalid base image name",
    ),
    Rule(
        "FromPlatformFlagConstDisallowed",
        "FROM --platform flag should not use a constant value",
        'FROM --platform flag should not use constant value "{0}"',
    ),
    Rule(
        "CopyIgnoredFile",
        "Attempting to Copy file that is excluded by .dockerignore",
        'Attempting to {0} file "{1}" that is excluded by .dockerignore',
    ),
    Rule(
        "InvalidDefinitionDescription",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> "
        "<description>`. If this is not intended to be a description comment, add an empty line or "
        "comment between the instruction and the comment.",
        "Comment for {0} should follow the format: `# {1} <description>`",
        experimental=True,
    ),
    Rule(
        "ExposeProtoCasing",
        "Protocol in EXPOSE instruction should be lowercase",
        "Defined protocol '{0}' in EXPOSE instruction should be lowercase",
    ),
    Rule(
        "ExposeInvalidFormat",
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become "
        "an error in a future release",
        "EXPOSE instruction should not define an IP address or host-port mapping, found '{0}'",
    ),
    Rule(
        "CopySeveralToOneFile",
        "Several sources are copied to one file, of which only the last stays",
        "{0} has several sources, and its destination {1} does not end in a slash",
        own=True,
    ),
    Rule(
        "ArgHidesEnv",
        "An ARG of the name of an ENV changes what RUN sees, but not the image",
        "ARG {0} hides the ENV {0} from later instructions of this stage, not from the image",
        own=True,
    ),
]
RULES = {rule.name: rule for rule in _TABLE}
# Those that need no more of a file than the lines before.
LINE_BY_LINE = (
    "NoEmptyContinuation",
    "MaintainerDeprecated",
    "StageNameCasing",
    "FromAsCasing",
    "InvalidDefinitionDescription",
)

_MOST_GUESSES = 50
RESERVED = ("context", "scratch")
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)


@struct
class Finding:
    """A rule that something in the file does not follow."""

    rule: Rule
    message: str
    span: Span


@struct
class Checks:
    """Which rules a file wants: ``# check=skip=...;experimental=...;error=true``."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def wants(self, rule: Rule) -> bool:
        names = {"all", rule.name}
        return bool(names & self.experimental) if rule.experimental else not names & self.skip

    def with_(self, other: Checks) -> Checks:
        return Checks(self.skip | other.skip, self.experimental | other.experimental, self.error)


def parse_checks(text: str) -> Checks:
    """The value of a check directive. Raises ValueError."""
    found: dict[str, str] = {}
    for part in text.split(";") if text.strip() else ():
        key, equals, value = part.strip().partition("=")
        if not equals or key not in ("skip", "experimental", "error"):
            raise ValueError(f'invalid check option "{key if equals else part}"')
        found[key] = value.strip()
    error = found.get("error", "false").lower()
    if error not in ("1", "t", "true", "0", "f", "false"):
        raise ValueError(f'failed to parse check option "error={found["error"]}"')
    names = {key: found.get(key, "").split(",") for key in ("skip", "experimental")}
    # "all" stands alone; among others it is the name of no rule.
    skip, experimental = (
        frozenset(name.strip() for name in items) - ({"all"} if len(items) > 1 else set())
        for items in names.values()
    )
    return Checks(skip, experimental, error in ("1", "t", "true"))


class Linter:
    """Collects findings about one file.

    ``checks`` are those it asks for; a ``# check=`` comment right before an instruction adds to
    them for that one. *ignore* is the ignore file of the context, None where there is none.
    """

    def __init__(self, file: ast.Dockerfile, checks: Checks, ignore: Ignore | None = None) -> None:
        self.checks = checks
        self._found: dict[Finding, None] = {}
        self._guesses: dict[str, str] = {}
        self._comments = file.comments
        self._starts = sorted(file.sources)
        self._ignore = ignore

    def warn(self, name: str, span: Span, *values: str) -> None:
        """Something at *span* does not follow the rule *name*."""
        rule = RULES[name]
        if self._checks_at(span.first).wants(rule):
            self._found[Finding(rule, rule.message.format(*values), span)] = None

    def undefined(self, names: set[str], known: Iterable[str], span: Span) -> None:
        """Variables that were used and are not set."""
        for name in sorted(names):
            self.warn("UndefinedVar", span, name, self.guess(name, known, "$"))

    def guess(self, name: str, known: Iterable[str], mark: str = "") -> str:
        """A suggestion for *name*, for the first names of a file: a file may misspell thousands."""
        if name not in self._guesses:
            few = len(self._guesses) < _MOST_GUESSES
            self._guesses[name] = suggestion(name, known, 0.75, mark) if few else ""
        return self._guesses[name]

    def copied(self, keyword: str, source: str, span: Span) -> None:
        """A path of the context that is copied: it should not be one that is always ignored.

        With exceptions in the ignore file nothing can be said before files are looked at.
        """
        path = posixpath.normpath(source).lstrip("/")
        if self._ignore is None or self._ignore.has_exceptions:
            return
        hides_all = path in ("", ".") and self._ignore.why("x") and self._ignore.why(".x")
        if hides_all or (path not in ("", ".") and self._ignore.why(path)):
            self.warn("CopyIgnoredFile", span, keyword.capitalize(), path or ".")

    def _checks_at(self, line: int) -> Checks:
        """The checks for the instruction that a line belongs to."""
        place = bisect.bisect_right(self._starts, line)
        for comment in self._comments.get(self._starts[place - 1], ()) if place else ():
            key, equals, value = comment.partition("=")
            if equals and key.strip().lower() == "check":
                try:
                    return self.checks.with_(parse_checks(value.strip().partition(" ")[0]))
                except ValueError:
                    return self.checks
        return self.checks

    @property
    def findings(self) -> list[Finding]:
        """What was found, by line."""
        return sorted(self._found, key=lambda finding: finding.span.first)


def describing(file: ast.Dockerfile, span: Span, name: str) -> str:
    """What the comments before an instruction say of *name*: ``# name description``."""
    for comment in file.comments.get(span.first, ()):
        if comment.startswith(name + " "):
            return comment[len(name) + 1 :]
    return ""


# -- what the syntax decides ---------------------------------------------------------------


def check_file(file: ast.Dockerfile, linter: Linter) -> None:
    """The rules for which it does not matter what is built."""
    for line in file.empty_continuations:
        linter.warn("NoEmptyContinuation", Span(line, line))
    seen: set[str] = set()
    for arg in file.global_args:
        _describe("ARG", [pair.key for pair in arg.pairs], arg.span, file, linter)
    for stage in file.stages:
        start = stage.start
        words = file.sources[start.span.first].split()
        if start.name:
            _stage_name(words, start, linter)
            if start.name in RESERVED:
                linter.warn("ReservedStageName", start.span, start.name)
            if start.name in seen:
                linter.warn("DuplicateStageName", start.span, start.name)
            seen.add(start.name)
            _describe("FROM", [start.name], start.span, file, linter)
        for node in stage.instructions:
            if isinstance(node, ast.Maintainer):
                linter.warn("MaintainerDeprecated", node.span)
            elif isinstance(node, ast.Arg):
                _describe("ARG", [pair.key for pair in node.pairs], node.span, file, linter)
    _casing(file, linter)


def _stage_name(words: list[str], start: ast.From, linter: Linter) -> None:
    keyword, as_, name = words[0], words[-2], words[-1]
    if name != name.lower():
        linter.warn("StageNameCasing", start.span, name)
    same = as_.islower() if keyword.islower() else as_.isupper() or not keyword.isupper()
    if not same:
        linter.warn("FromAsCasing", start.span, keyword, as_)


def _describe(keyword: str, names: list[str], span: Span, file: ast.Dockerfile, linter: Linter) -> None:
    comment = (file.comments.get(span.first) or ("",))[-1]
    if comment and comment.split(" ")[0] not in names and not comment.startswith("check="):
        shown = names[0] if len(names) == 1 else "<arg_key>"
        linter.warn("InvalidDefinitionDescription", span, keyword, shown)


def _casing(file: ast.Dockerfile, linter: Linter) -> None:
    keywords = [(file.sources[node.span.first].split()[0], node.span) for node in _instructions(file)]
    lower = sum(keyword.islower() for keyword, _ in keywords) > sum(k.isupper() for k, _ in keywords)
    for keyword, span in keywords:
        if not (keyword.islower() if lower else keyword.isupper()):
            case = "lowercase" if lower else "uppercase"
            linter.warn("ConsistentInstructionCasing", span, keyword, case)


def _instructions(file: ast.Dockerfile) -> Iterator[ast.Instruction]:
    for stage in file.stages:
        yield stage.start
        yield from stage.instructions


def check_stage(stage: ast.Stage, linter: Linter) -> None:
    """The rules for the instructions of a stage that is built."""
    last: dict[str, Span] = {}
    given: set[str] = set()
    for node in stage.instructions:
        match node:
            case ast.Env() | ast.Label():
                keyword = type(node).__name__.upper()
                if node.legacy:
                    linter.warn("LegacyKeyValueFormat", node.span, keyword)
                if isinstance(node, ast.Env):
                    _secrets(keyword, node.pairs, node.span, linter)
                    given |= {pair.key for pair in node.pairs}
            case ast.Arg():
                _secrets("ARG", node.pairs, node.span, linter)
                for pair in node.pairs:
                    if pair.key in given and pair.value is not None:
                        linter.warn("ArgHidesEnv", node.span, pair.key)
            case ast.Cmd() | ast.Entrypoint() | ast.Healthcheck():
                keyword = type(node).__name__.upper()
                if keyword in last:
                    linter.warn("MultipleInstructionsDisallowed", last[keyword], keyword)
                last[keyword] = node.span
            case ast.Copy() | ast.Add():
                several = len(node.sources) + len(node.heredocs) > 1
                if (
                    several
                    and node.dest not in ("", ".", "..")
                    and not node.dest.endswith(("/", "/.", "/.."))
                ):
                    keyword = type(node).__name__.upper()
                    linter.warn("CopySeveralToOneFile", node.span, keyword, node.dest)
            case _:
                pass


def _secrets(keyword: str, pairs: tuple[ast.Pair, ...], span: Span, linter: Linter) -> None:
    for pair in pairs:
        if _SECRET.search(pair.key) and not _NO_SECRET.search(pair.key):
            linter.warn("SecretsUsedInArgOrEnv", span, keyword, pair.key)
