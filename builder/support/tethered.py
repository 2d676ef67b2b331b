"""Programs that end with this process, however it ends, with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

# A shell beside the program kills their process group once nobody holds the other end of a pipe: also when
# we are killed. (The kernel's own signal for that is not passed on by a program to what it starts, nor
# given to one with more rights than we have, as ssh-agent is.)
_SCRIPT = '(read -r nothing </proc/self/fd/$1; kill -9 -$$) >/dev/null 2>&1 & shift; exec "$@"'


class Tethered(subprocess.Popen[bytes]):
    """A program in a session and process group of its own; ``release`` it once it has ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        umask: int = -1,
    ) -> None:
        end, self._hold = os.pipe()
        try:
            words = ["sh", "-c", _SCRIPT, "sh", str(end), *arguments]
            super().__init__(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                umask=umask,
                pass_fds=(end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._hold)
            raise
        finally:
            os.close(end)

    def kill(self) -> None:
        """Kill it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Release the program. What it has left running is killed."""
        os.close(self._hold)
