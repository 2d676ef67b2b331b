"""The command of tests/fuzz/run."""

from __future__ import annotations

import argparse
import random
import sys
import traceback

from fuzzer import fuzz
from targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    count, failure = fuzz(given.target, given.seconds, given.seed)
    print(f"{given.target}: {count} inputs, seed {given.seed}")
    if failure is None:
        return 0
    traceback.print_exception(failure.error)
    print(f"the input: {failure.data!r}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
