"""The ``pybuild`` command: the cached build first, everything else after.

Nothing is imported here that a fully cached build does not need.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line and end the process with its exit code."""
    code = 1
    try:
        _be_utf8()
        _open_streams()
        code = _main(sys.argv[1:])
    except KeyboardInterrupt:  # before the build starts, or after it ends
        sys.stderr.write("pybuild: cancelled\n")
        code = 130
    except SystemExit as end:  # argparse, after --help
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    try:
        _flush_streams()
    finally:  # also when a second signal comes
        os._exit(code)  # everything is closed; the kernel frees memory faster than the interpreter


def _main(argv: list[str]) -> int:
    if argv == ["--version"]:
        from builder import VERSION

        sys.stdout.write(f"pybuild {VERSION}\n")
        return 0
    if "--debug" in argv:
        from builder.support.debug import take

        argv = take(argv)
    from builder.replay.play import replay

    replayed = replay(argv)
    if replayed.done:
        return 0
    import gc

    gc.disable()  # a build makes few cycles, but many objects that a collection would visit
    from builder.cli.dispatch import run

    return run(argv, replayed.seen)


def _be_utf8() -> None:
    """Execute this program again in UTF-8 mode if the locale has another encoding for file names.

    A build never depends on the locale, and a running Python cannot change its file system encoding.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")[1:-1]
    except OSError:
        words = list(map(os.fsencode, sys.orig_argv[1:]))
    os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8=1", *words])


def _open_streams() -> None:
    """Open the descriptors 0, 1 and 2 if they are closed; otherwise files of the store get these numbers.

    Writing to an output that was closed fails. Text is UTF-8, and names in any encoding can be printed.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd == 1 else os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if (stream.encoding, stream.errors) != ("utf-8", errors):
            stream.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]


def _flush_streams() -> None:
    """Flush, and drop what cannot be written: otherwise Python reports it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
