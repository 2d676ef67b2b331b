"""Run the ``pybuild`` command as a user would: by a fork of one process (zygote.py), where that is the same."""

from __future__ import annotations

import atexit
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oci import Image, read_image
from zygote import Invocation, Zygote, can_be

PYBUILD = str(Path(sys.executable).with_name("pybuild"))  # the installed command
PROCESS = secrets.token_hex(
    3
)  # names what this test process makes on the machine: its pid may be another's, too
ZYGOTE = Zygote()
atexit.register(ZYGOTE.stop)

Tree = Mapping[str, "str | bytes | Tree | None"]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def cached(self) -> int:
        """How many steps the cache answered, as plain progress tells."""
        return self.err.count(" CACHED\n")

    @property
    def executed(self) -> int:
        return self.err.count(" DONE ")

    def ok(self) -> Result:
        assert self.code == 0, f"exit code {self.code}\n{self.err}"
        return self

    def failed(self, code: int = 1) -> Result:
        """A clean failure: the code, one error line, no traceback."""
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.err}"
        assert "Traceback" not in self.err, self.err
        assert self.err.count("\nerror: ") + self.err.startswith("error: ") == (1 if code != 130 else 0), (
            self.err
        )
        return self


@dataclass(frozen=True)
class Pybuild:
    """The command on one store, with a folder for contexts and exports."""

    store: Path
    work: Path

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float = 120,
    ) -> Result:
        words, environment = [PYBUILD, *map(str, args)], self.environment(env)
        if can_be(environment):
            ZYGOTE.start(environment)
            return _result(*ZYGOTE.run(Invocation(words, environment, str(cwd or self.work)), stdin, timeout))
        done = subprocess.run(
            words,
            cwd=cwd or self.work,
            env=environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        return _result(done.returncode, done.stdout, done.stderr)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What the command sees: this store, nothing of the outside that changes a build."""
        kept = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "TMPDIR", "PYBUILD_ISOLATION")
            if name in os.environ
        }
        ours = {
            "PYBUILD_ROOT": str(self.store),
            "LC_ALL": "C.UTF-8",
            "CONTAINERS_REGISTRIES_CONF": os.devnull,
        }
        return {**kept, **ours, **(more or {})}

    def context(self, dockerfile: str | None, files: Tree | None = None, name: str = "context") -> Path:
        """A build context, emptied and written anew."""
        folder = self.work / name
        if folder.exists():
            subprocess.run(["rm", "-rf", folder], check=True)
        make_tree(folder, files or {})
        if dockerfile is not None:
            (folder / "Dockerfile").write_bytes(dockerfile.encode("utf-8", "surrogateescape"))
        return folder

    def build(self, dockerfile: str, files: Tree | None = None, *options: str) -> Image:
        """Build *dockerfile* and return what the export holds."""
        context = self.context(dockerfile, files)
        return self.export(context, *options)

    def export(self, context: Path, *options: str | Path) -> Image:
        """Build a context and return what the export holds."""
        archive = self.work / "export.tar"
        self(*options, "-o", f"type=oci,dest={archive}", context).ok()
        return read_image(archive)

    def refuse(self, dockerfile: str, files: Tree | None = None, *options: str, code: int = 1) -> str:
        """Build *dockerfile*, which must fail cleanly; what was said."""
        return self(*options, self.context(dockerfile, files)).failed(code).err


def make_tree(folder: Path, files: Tree) -> Path:
    """Write *files*: a text or bytes is a file, a mapping a folder, ``-> x`` as text a link to x."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content[3:])
        elif isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            make_tree(path, content)
    return folder


def remove_cgroup(group: Path) -> None:
    """Remove a cgroup, whose last process may need a moment to be gone."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    group.rmdir()


def _result(code: int, *outputs: bytes) -> Result:
    out, err = (data.decode("utf-8", "backslashreplace") for data in outputs)
    return Result(code, out, err)
