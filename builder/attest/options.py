"""``--sbom``, ``--provenance`` and ``--attest``, in the syntax of docker buildx. All are off by default."""

from __future__ import annotations

from collections.abc import Sequence

from builder.errors import UsageError
from builder.support.fields import parse_fields
from grammar.booleans import truth
from grammar.structs import struct

_FORMS = ("spdx", "cyclonedx")
_MODES = ("min", "max")


@struct
class Attestations:
    """The format of the SBOM and the mode of the provenance; "" for none."""

    sbom: str = ""
    provenance: str = ""
    builder_id: str = ""


def parse_attestations(sbom: Sequence[str], provenance: Sequence[str], attest: Sequence[str]) -> Attestations:
    """Parse the values of the three options. The last one wins. Raises UsageError."""
    form = mode = builder = ""
    for option, given, text in (
        *(("--attest", "", text) for text in attest),
        *(("--sbom", "sbom", text) for text in sbom),
        *(("--provenance", "provenance", text) for text in provenance),
    ):
        fields = _fields(option, given, text)
        kind = given or fields.pop("type", "")
        if kind == "sbom":
            form = _form(f"{option} {text!r}", fields)
        elif kind == "provenance":
            mode, builder = _mode(f"{option} {text!r}", fields)
        else:
            raise UsageError(
                f"{option} {text!r}: the type is sbom or provenance", "for example: --attest type=sbom"
            )
    return Attestations(form, mode, builder)


def _fields(option: str, kind: str, text: str) -> dict[str, str]:
    """Parse ``name=value`` fields with commas between them; an option of a *kind* may have one word."""
    on = truth(text or "true")
    if kind and on is not None:
        return {} if on else {"disabled": "true"}
    if kind and text in (*_FORMS, *_MODES):
        return {"format" if text in _FORMS else "mode": text}
    return parse_fields(text, option, bare="true")


def _form(option: str, fields: dict[str, str]) -> str:
    disabled, form = fields.pop("disabled", "false"), fields.pop("format", _FORMS[0])
    if "generator" in fields:
        raise UsageError(f"{option}: pybuild looks for packages itself, and runs no generator")
    if fields or form not in _FORMS or (off := truth(disabled or "true")) is None:
        raise UsageError(f"{option} is not one of {', '.join(_FORMS)}")
    return "" if off else form


def _mode(option: str, fields: dict[str, str]) -> tuple[str, str]:
    """Return the mode, and the builder's identifier."""
    disabled, version = fields.pop("disabled", "false"), fields.pop("version", "v1")
    mode, builder = fields.pop("mode", _MODES[0]), fields.pop("builder-id", "")
    if version != "v1":
        raise UsageError(f"{option}: only version v1 of provenance is written")
    if fields or mode not in _MODES or (off := truth(disabled or "true")) is None:
        raise UsageError(f"{option} is not mode=min or mode=max, with builder-id=URI or without")
    return ("", "") if off else (mode, builder)
