"""The pages of error codes, which ``pybuild help CODE`` and docs/errors.md show: cause and cure of each."""

from __future__ import annotations

import os

_FILE = os.path.join(os.path.dirname(__file__), "error_pages.md")


def error_pages() -> dict[str, str]:
    """Return the page of each code."""
    with open(_FILE, encoding="utf-8") as file:
        sections = file.read().split("## ")[1:]
    return {code: page.strip() for code, _, page in (section.partition("\n") for section in sections)}
