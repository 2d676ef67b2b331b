"""``--format``: fill in a template, of which the simple part of docker's language is supported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from builder.errors import UsageError
from builder.support.json_types import Json

_FIELD = re.compile(r"\{\{\s*(json\s+)?\.([A-Za-z0-9_.]*)\s*\}\}")
_ESCAPES = {"\\t": "\t", "\\n": "\n"}


def shaped(value: Json, template: str) -> str:
    """Fill ``{{.Name}}``, ``{{.Name.Of.More}}`` and ``{{json .Name}}`` of *value* into a template.

    Raises UsageError for a missing field, or anything else in braces.
    """

    def fill(match: re.Match[str]) -> str:
        found: Json = value
        for part in match[2].split(".") if match[2] else ():
            if not isinstance(found, Mapping) or part not in found:
                raise UsageError(f"--format {template!r}: there is no {match[2]!r}", _fields(value))
            found = found[part]
        if match[1] or isinstance(found, Mapping | list):
            return json.dumps(found)
        return str(found)

    for written, meant in _ESCAPES.items():
        template = template.replace(written, meant)
    text = _FIELD.sub(fill, template)
    if "{{" in _FIELD.sub("", template):
        raise UsageError(f"--format {template!r}: only {{{{.Name}}}} and {{{{json .Name}}}} are supported")
    return text


def _fields(value: Json) -> str:
    return f"the fields are {', '.join(value)}" if isinstance(value, Mapping) else ""


def show(
    rows: Sequence[Mapping[str, Json]], as_json: bool, template: str, write: Callable[[str], None]
) -> bool:
    """Write *rows* as JSON, or each as *template* says; whether either was wanted."""
    if as_json or template == "json":
        write(json.dumps(rows, indent=2))
    elif template:
        for row in rows:
            write(shaped(row, template.removeprefix("table ")))
    return bool(as_json or template)
