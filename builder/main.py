"""The ``pybuild`` command: the cached build first, everything else after.

Nothing is imported here that a fully cached build does not need.
"""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:]
    if argv == ["--version"]:
        from builder import VERSION

        sys.stdout.write(f"pybuild {VERSION}\n")
        return 0
    from builder.replay import replay

    done, look = replay(argv)
    if done:
        return 0
    from builder.cli import run

    return run(argv, look)
