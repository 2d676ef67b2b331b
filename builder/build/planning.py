"""Parse and plan the Dockerfile, and report what the lint rules find."""

from __future__ import annotations

import contextlib
import pickle

from builder.build.inputs import Inputs
from builder.build.resolve import StoreResolver
from builder.environment import Environment
from builder.errors import BuildError, ChecksFailed, PlanError, StepError
from builder.images.lazy_layers import Layers
from builder.plan.graph import Plan
from builder.plan.planner import plan
from builder.request import BuildRequest
from builder.support.code_digest import code_digest
from cache.store import Store
from grammar import ast
from grammar.errors import DockerfileError, excerpt, file_lines
from grammar.lint.linter import Checks, Finding, Linter, parse_checks
from grammar.lint.syntax import check_file
from grammar.redact import redacted
from grammar.span import Span
from grammar.structs import struct


@struct
class Planning:
    """How a file is planned.

    With ``metadata_only`` no base image is pulled: its config is read from the registry. With ``all_stages``
    also stages that the target does not need are checked.
    """

    metadata_only: bool = False
    all_stages: bool = False


def plan_file(
    request: BuildRequest,
    inputs: Inputs,
    environment: Environment,
    layers: Layers,
    findings: list[Finding],
    how: Planning = Planning(),  # noqa: B008 (it is frozen)
) -> Plan:
    """Parse and plan the Dockerfile; findings of the lint rules are added to *findings*, also on errors.

    *layers* learns where the layers of base images are. Raises BuildError with an excerpt of the file.
    """
    try:
        file = parsed(inputs, environment.store, environment.no_cache)
    except BuildError as error:
        findings += _findings_before(error.span, request, inputs)
        raise
    try:
        resolver = StoreResolver(
            environment=environment,
            layers=layers,
            options=request.client,
            context=inputs.files,
            metadata_only=how.metadata_only,
            policy=request.pull,
            lazy=bool(request.cache_from) and request.pull != "newer",
        )
        linter = Linter(file, _checks(request, file), inputs.ignore.parse())
        try:
            made = plan(file, request, resolver, linter, how.all_stages)
        finally:
            findings += linter.findings
    except PlanError as error:
        raise with_excerpt(error, inputs) from None
    if linter.checks.error and findings:
        names = ", ".join(sorted({finding.rule.name for finding in findings}))
        failure = ChecksFailed(
            f"lint violation found for rules: {names}",
            "the check directive of the file says error=true",
            "\n".join(shown_findings(findings, inputs)),
        )
        failure.span = findings[0].span
        raise failure
    return made


def _findings_before(span: Span | None, request: BuildRequest, inputs: Inputs) -> list[Finding]:
    """Return what is found line by line before the line at *span*, which cannot be read."""
    from grammar.parse import parse  # lark takes 40 ms to import

    with contextlib.suppress(DockerfileError, BuildError):  # of the lines before, too
        if span is not None:
            file = parse("\n".join(inputs.text.split("\n")[: span.first - 1]))
            linter = Linter(file, _checks(request, file))
            check_file(file, linter)
            return [finding for finding in linter.findings if finding.rule.line_by_line]
    return []


def _checks(request: BuildRequest, file: ast.Dockerfile) -> Checks:
    """Return which lint rules apply: as the command line says, otherwise as the file does."""
    text = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK", file.directives.check)
    try:
        return parse_checks(text)
    except ValueError as error:
        raise BuildError(f"failed to parse check options: {error}") from None


def parsed(inputs: Inputs, store: Store, no_cache: bool = False) -> ast.Dockerfile:
    """Return the syntax tree of the Dockerfile.

    The tree of an equal file is kept, as lark alone takes 40 ms.
    With *no_cache* a kept tree is not read. Raises BuildError with an excerpt of the file.
    """
    text = inputs.text
    data = store.memos.syntax_tree(code_digest(), text) if not no_cache else None
    if data is not None:
        with contextlib.suppress(Exception):  # a damaged record: parse again
            stored: ast.Dockerfile = pickle.loads(data)
            return stored
    from grammar.parse import parse  # lark takes 40 ms to import

    try:
        tree = parse(text)
    except DockerfileError as error:
        failure = PlanError(error.message, error.span, error.hint, code=error.code)
        raise with_excerpt(failure, inputs) from None
    if redacted(text) == text:  # the index holds no passwords
        store.memos.set_syntax_tree(code_digest(), text, pickle.dumps(tree))
    return tree


def shown_findings(findings: list[Finding], inputs: Inputs) -> tuple[str, ...]:
    """Return each finding as text: what is wrong, and where."""
    name, lines = inputs.shown, file_lines(inputs.text)
    shown = (
        f"WARNING: {finding.rule.name}: {redacted(finding.message)}\n{excerpt(name, lines, finding.span, 0)}"
        for finding in findings
    )
    return tuple(dict.fromkeys(shown))


def with_excerpt(error: PlanError | StepError, inputs: Inputs) -> BuildError:
    """Return *error* with the lines of the Dockerfile that it is about."""
    if error.span is not None:
        error.excerpt = excerpt(inputs.shown, inputs.text, error.span)
    return error
