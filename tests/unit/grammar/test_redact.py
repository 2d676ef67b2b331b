"""Credentials of URLs are in nothing that is shown."""

from __future__ import annotations

import pytest

from grammar.errors import excerpt
from grammar.redact import redacted, without_credentials
from grammar.span import Span


@pytest.mark.parametrize(
    "text, shown",
    [
        ("ADD http://me:pw@h.test/x /y", "ADD http://xxxxx@h.test/x /y"),
        ("ssh://git:p@w@h/x", "ssh://xxxxx@h/x"),
        ("https://token@h/a https://:pw@h/b", "https://xxxxx@h/a https://xxxxx@h/b"),
        ("http://me:p/w@h/x", "http://xxxxx@h/x"),
        ("http://me:p#w?@h/x", "http://xxxxx@h/x"),
        ("http://me:80x@h", "http://xxxxx@h"),
        ("URL=\"http://a:b@h/x\" V='ftp://c:d@h'", "URL=\"http://xxxxx@h/x\" V='ftp://xxxxx@h'"),
        ("http://h:80/@scope/x@1 http://h/a:b@c", "http://h:80/@scope/x@1 http://h/a:b@c"),
        (
            "http://h:5000,http://h:80 a@b git@h:x http://h:80",
            "http://h:5000,http://h:80 a@b git@h:x http://h:80",
        ),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert without_credentials(text) == shown.replace("xxxxx@", "")


def test_excerpt() -> None:
    text = "FROM x\nADD http://me:hunter2@h/x /y\n"
    assert excerpt("Dockerfile", text, Span(2, 2), 0) == (
        "Dockerfile:2\n 2 | >>> ADD http://xxxxx@h/x /y\n   |     ^^^^^^^^^^^^^^^^^^^^^^^"
    )
