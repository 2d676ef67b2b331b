"""Options that ask for attestations."""

from __future__ import annotations

import pytest

from builder.attest.options import Attestations, parse_attestations
from builder.errors import UsageError


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, Attestations()),
        ({"sbom": [""]}, Attestations("spdx")),
        ({"sbom": ["true"]}, Attestations("spdx")),
        ({"sbom": ["cyclonedx"]}, Attestations("cyclonedx")),
        ({"sbom": ["cyclonedx", "false"]}, Attestations()),
        ({"provenance": [""]}, Attestations("", "min")),
        ({"provenance": ["mode=max"]}, Attestations("", "max")),
        ({"provenance": ["max"]}, Attestations("", "max")),
        (
            {"provenance": ["mode=max,builder-id=https://ci.example.com/1"]},
            Attestations("", "max", "https://ci.example.com/1"),
        ),
        ({"provenance": ["false"]}, Attestations()),
        ({"attest": ["type=sbom", "type=provenance,mode=max"]}, Attestations("spdx", "max")),
        ({"attest": ["type=sbom,format=cyclonedx"]}, Attestations("cyclonedx")),
        ({"attest": ["type=provenance,disabled=true"]}, Attestations()),
        ({"attest": ["type=provenance,mode=max"], "provenance": ["false"]}, Attestations()),
        ({"attest": ['type=provenance,"builder-id=a,b"']}, Attestations("", "min", "a,b")),
    ],
)
def test_asked(options: dict[str, list[str]], wanted: Attestations) -> None:
    assert parse_attestations(**({"sbom": [], "provenance": [], "attest": []} | options)) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"sbom": ["spdx3"]},
        {"sbom": ["generator=docker/scout"]},
        {"provenance": ["mode=mid"]},
        {"provenance": ["version=v0.2"]},
        {"provenance": ["x=1"]},
        {"attest": ["sbom"]},
        {"attest": ["type=vex"]},
        {"attest": [""]},
    ],
)
def test_refused(options: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError):
        parse_attestations(**({"sbom": [], "provenance": [], "attest": []} | options))
