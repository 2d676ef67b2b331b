"""Option values that are lists of fields."""

from __future__ import annotations

import pytest

from builder.errors import UsageError
from builder.support.fields import parse_fields


def test_names_are_lower_case_and_the_last_wins() -> None:
    assert parse_fields("Type=oci,dest=A,DEST=b", "-o") == {"type": "oci", "dest": "b"}


def test_quotes_enclose_a_field_with_commas() -> None:
    assert parse_fields('type=oci,"name=a,b"', "-o") == {"type": "oci", "name": "a,b"}


def test_a_bare_name_has_the_value_that_the_caller_chooses() -> None:
    assert parse_fields("required", "--attest", bare="true") == {"required": "true"}
    assert parse_fields("required", "-o") == {"required": ""}


def test_names_with_the_exact_prefix_keep_their_case() -> None:
    fields = parse_fields("annotation.Key=V,Type=oci", "-o", exact="annotation")
    assert fields == {"annotation.Key": "V", "type": "oci"}


@pytest.mark.parametrize("text", ["=password", "a=b,,c=d", "a=b\nc=d"])
def test_errors_name_the_option_and_show_no_value(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_fields(text, "--secret")
    assert caught.value.message.startswith("--secret")
    assert "password" not in caught.value.message


def test_an_empty_text_has_no_fields() -> None:
    assert parse_fields("", "-o") == {}
