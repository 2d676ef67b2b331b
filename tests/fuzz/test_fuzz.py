"""Each fuzz target for a moment; by hand for longer: tests/fuzz/run TARGET --seconds 600."""

from __future__ import annotations

import os
import random

import pytest
from fuzzer import fuzz
from targets import TARGETS

SECONDS = float(os.environ.get("PYBUILD_FUZZ_SECONDS", "2"))


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    """Any input is read, or refused with the parser's own error, in bounded time."""
    seed = random.SystemRandom().randrange(1 << 32)
    count, failure = fuzz(name, SECONDS, seed)
    assert count
    assert failure is None, f"seed {seed}, input {count}: {failure.data!r}: {failure.error!r}"
