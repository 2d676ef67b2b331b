"""``--check`` and ``--call``: evaluate a Dockerfile without building it.

The JSON is that of BuildKit's subrequests, so tools that read those read this.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from builder.build.inputs import Inputs
from builder.build.planning import Planning, parsed, plan_file
from builder.environment import Environment
from builder.errors import BuildError
from builder.images.lazy_layers import Layers
from builder.plan.graph import Plan
from builder.request import BuildRequest
from builder.support.json_types import JsonObject
from grammar import ast
from grammar.errors import excerpt, file_lines
from grammar.lint.linter import Finding, describing
from grammar.redact import redacted
from grammar.span import Span


def call(
    method: str, request: BuildRequest, inputs: Inputs, environment: Environment, as_json: bool
) -> tuple[str, int]:
    """Return the answer of *method* and the exit code. Raises BuildError."""
    if method == "targets":
        file = parsed(inputs, environment.store)
        answer = _targets(file)
        return (_json(answer, file.text) if as_json else _targets_table(answer)), 0
    if method == "outline":
        layers = Layers(environment.store, environment.sink)
        planned = plan_file(request, inputs, environment, layers, [], Planning(metadata_only=True))
        file = parsed(inputs, environment.store)
        answer = _outline(request, file, planned)
        return (_json(answer, file.text) if as_json else _outline_table(answer)), 0
    return _check(request, inputs, environment, as_json)


def _check(request: BuildRequest, inputs: Inputs, environment: Environment, as_json: bool) -> tuple[str, int]:
    findings: list[Finding] = []
    failure: BuildError | None = None
    try:
        layers = Layers(environment.store, environment.sink)
        plan_file(request, inputs, environment, layers, findings, Planning(True, not request.target))
    except BuildError as error:
        failure = error
    text, name = inputs.text, inputs.shown
    code = 1 if findings or failure is not None else 0
    if as_json:
        answer: JsonObject = {"warnings": [_warning(finding) for finding in findings]}
        source = {"fileName": name, "language": "Dockerfile", "definition": None, "data": _base64(text)}
        answer["sources"] = [source]
        if failure is not None:
            answer["buildError"] = {"message": failure.message, "location": _location(failure.span)}
        return json.dumps(answer, indent=2) + "\n", code
    lines = file_lines(text)
    out = [f"{_long(finding, name, lines)}\n\n" for finding in findings]
    if failure is not None:
        raise BuildError(failure.message, failure.hint, "".join(out) + failure.excerpt)
    count = len(findings)
    said = "no warnings found." if not count else "1 warning has been found!"
    out.append(f"Check complete, {said if count < 2 else f'{count} warnings have been found!'}\n")
    return "".join(out), code


def _long(finding: Finding, name: str, lines: list[str]) -> str:
    page = finding.rule.url or f"docs/rules/{finding.rule.page}.md"
    where = excerpt(name, lines, finding.span)
    return f"WARNING: {finding.rule.name} - {page}\n{redacted(finding.message)}\n{where}"


def _warning(finding: Finding) -> JsonObject:
    rule = finding.rule
    out = {"ruleName": rule.name, "description": rule.description, "url": rule.url, "detail": finding.message}
    return {**{key: value for key, value in out.items() if value}, "location": _location(finding.span)}


def _location(span: Span | None) -> JsonObject:
    if span is None:
        return {}
    lines = range(span.first, span.last + 1)
    return {"ranges": [{"start": {"line": line}, "end": {"line": line}} for line in lines]}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _json(answer: JsonObject, text: str) -> str:
    return json.dumps({**answer, "sources": [_base64(text)]}, indent=2) + "\n"


def _given(**fields: object) -> JsonObject:
    return {name: value for name, value in fields.items() if value}


# -- targets -------------------------------------------------------------------------------


def _targets(file: ast.Dockerfile) -> JsonObject:
    last = file.stages[-1]
    return {
        "targets": [
            _given(
                name=stage.start.name,
                default=stage is last,
                description=describing(file, stage.start.span, stage.start.name) if stage.start.name else "",
                base=stage.start.base,
                platform=stage.start.platform,
                location=_location(stage.start.span),
            )
            for stage in file.stages
        ]
    }


def _targets_table(answer: JsonObject) -> str:
    rows = [("TARGET", "DESCRIPTION")]
    for target in answer["targets"]:
        name = target.get("name", "")
        mark = "(default)" if target.get("default") else ""
        if name or mark:
            rows.append((f"{name} {mark}".strip(), target.get("description", "")))
    return _table(rows)


# -- outline -------------------------------------------------------------------------------


def _outline(request: BuildRequest, file: ast.Dockerfile, planned: Plan) -> JsonObject:
    wanted = request.target.lower()
    stages = [stage.start for stage in file.stages if not wanted or stage.start.name == wanted]
    start = stages[-1]
    found = planned.outline
    return _given(
        name=start.name,
        description=describing(file, start.span, start.name) if start.name else "",
        args=[
            {
                **_given(name=a.name, description=a.description, value=a.value),
                "location": _location(a.span),
            }
            for a in found.arguments
        ],
        **{
            kind: [
                {**_given(name=need.name, required=need.required), "location": _location(need.span)}
                for need in needs
            ]
            for kind, needs in (("secrets", found.secrets), ("ssh", found.agents))
        },
    )


def _outline_table(answer: JsonObject) -> str:
    out = ""
    if name := answer.get("name"):
        out += f"TARGET:       {name}\n"
    if description := answer.get("description"):
        out += f"DESCRIPTION:  {description}\n"
    if arguments := answer.get("args"):
        rows = [("BUILD ARG", "VALUE", "DESCRIPTION")]
        rows += [(a["name"], a.get("value", ""), a.get("description", "")) for a in arguments]
        out += ("\n" if out else "") + _table(rows)
    for key, title in (("secrets", "SECRET"), ("ssh", "SSH")):
        if needs := answer.get(key):
            rows2 = [(title, "REQUIRED"), *((n["name"], "true" if n.get("required") else "") for n in needs)]
            out += ("\n" if out else "") + _table(rows2)
    return out


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
