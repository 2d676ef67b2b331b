"""What a step may try in pybuild, and in containers of podman, buildah and docker: who refuses what.

python benchmarks/confinement.py [--peer NAME] [--long]

The same probe (tests/support/probe.c, some 360 attempts) runs in a step of each, without a
network. Like run.py it starts itself again in namespaces of its own; needs root and gcc.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from confinement import Report, compile_probe, is_hostile, put_probe, read_report, said

from benchmarks import machine, peers
from benchmarks.machine import say

REPORT = "p/report"
DOCKERFILE = 'FROM {}\nCOPY . /\nRUN ["/probe", "report", "/p/report"]\n'
# State that podman and buildah would share with the machine.
PRIVATE = ("/run", "/var/lib/cni", "/var/lib/containers", "/tmp")
# Both want to raise limits that not every root may raise.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")


def main() -> int:
    options = _options()
    if os.geteuid():
        raise SystemExit("this needs root, like the tools it compares")
    if not options.inside:
        return machine.inside_namespaces(__file__, sys.argv[1:], "/dev/shm")
    for path in filter(os.path.isdir, PRIVATE):
        say("mount", "-t", "tmpfs", "none", path)
    folder = Path("/tmp/probes")  # podman wants short paths
    folder.mkdir()
    probe = compile_probe(folder)
    root = folder / "root"
    put_probe(root, probe)
    names = ["pybuild", *(options.peer or [name for name in TOOLS if name != "pybuild"])]
    reports = {}
    for name in names:
        try:
            reports[name] = TOOLS[name](folder / name, root)
        except (SystemExit, OSError, KeyError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    print(_table(reports), _differences(reports, options.long), sep="\n\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare what steps of several builders may do.")
    others = [name for name in TOOLS if name != "pybuild"]
    parser.add_argument("--peer", action="append", choices=others, metavar="NAME", help=", ".join(others))
    parser.add_argument("--long", action="store_true", help="name every probe that differs")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


# -- the tools -----------------------------------------------------------------------------


def _context(folder: Path, root: Path, base: str) -> Path:
    """A build context of the probe."""
    say("cp", "-a", str(root), str(folder))
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base))
    return folder


def pybuild(folder: Path, root: Path) -> Report:
    """A step, which prints its report."""
    folder.mkdir()
    program = str(Path(sys.executable).with_name("pybuild"))
    context = _context(folder / "context", root, "scratch")
    text = (context / "Dockerfile").read_text().replace(', "/p/report"', "")
    (context / "Dockerfile").write_text(text)
    options = ["--root", str(folder / "store"), "--network=none", "--progress=plain"]
    done = subprocess.run([program, *options, str(context)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return read_report("".join(re.findall(r"^#\d+ \d+\.\d+ (.*)$", done.stderr, re.MULTILINE)))


def _storage(folder: Path) -> list[str]:
    return ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]


def podman(folder: Path, root: Path) -> Report:
    """``podman run``, as it comes."""
    folder.mkdir()
    call = ["podman", *_storage(folder), "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
    archive = folder / "root.tar"
    say("tar", "-C", str(root), "-cf", str(archive), ".")
    say(*call, "import", str(archive), "probe:latest")
    options = ["--rm", "--network=none", "--pull=never", *LIMITS, f"--cgroup-parent=/{machine.CGROUP}/podman"]
    return read_report(say(*call, "run", *options, "probe", "/probe", "report"))


def buildah(folder: Path, root: Path) -> Report:
    """``buildah build --isolation oci``."""
    folder.mkdir()
    call = ["buildah", *_storage(folder)]
    context = _context(folder / "context", root, "scratch")
    options = ["--isolation", "oci", "--runtime", "runc", "--network", "none", *LIMITS]
    say(*call, "build", *options, f"--cgroup-parent=/{machine.CGROUP}/buildah", "-t", "probed", str(context))
    container = say(*call, "from", "--pull-never", "probed").strip()
    return read_report((Path(say(*call, "mount", container).strip()) / REPORT).read_bytes())


def docker(folder: Path, root: Path) -> Report:
    """``docker build``: BuildKit."""
    folder.mkdir()
    archive = folder / "root.tar"
    say("tar", "-C", str(root), "-cf", str(archive), ".")
    with peers.docker(folder, archive) as tool:
        context = _context(folder / "context", root, "busybox")
        say(*tool.build, "--network", "none", str(context), settings=tool.environment)
        container = say(tool.program, "create", peers.IMAGE, "x", settings=tool.environment).strip()
        copied = subprocess.check_output(
            [tool.program, "cp", f"{container}:/{REPORT}", "-"], env=dict(tool.environment)
        )
    with tarfile.open(fileobj=io.BytesIO(copied)) as tar:
        return read_report(_member(tar, "report"))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    content = tar.extractfile(name)
    if content is None:
        raise ValueError(f"{name} is no file")
    return content.read()


TOOLS: Mapping[str, Callable[[Path, Path], Report]] = {
    "pybuild": pybuild,
    "podman": podman,
    "buildah": buildah,
    "docker": docker,
}


# -- the tables ----------------------------------------------------------------------------


FACTS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "capabilities": lambda data: str(data["status"]["CapEff"]),
    "seccomp mode": lambda data: str(data["status"]["Seccomp"]),
    "no_new_privs": lambda data: str(data["status"]["NoNewPrivs"]),
    "id 0 is on the machine": lambda data: str(data["uid_map"][0].split()[1]),
    "bytes a core file may have": lambda data: str(data["rlimits"]["CORE"][1]).replace("-1", "any"),
    "oom_score_adj": lambda data: str(data["oom_score_adj"]),
}


def _table(reports: Mapping[str, Report]) -> str:
    rows = [
        ["", *reports],
        ["---", *("---:" for _ in reports)],
        ["hostile probes that succeed", *(str(len(_open(report))) for report in reports.values())],
        ["of", *(str(sum(map(is_hostile, report.answers))) for report in reports.values())],
        ["harmless ones that fail", *(str(len(_lost(report))) for report in reports.values())],
    ]
    for label, value in FACTS.items():
        rows.append([label, *(value(report.data) for report in reports.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _open(report: Report) -> set[str]:
    """The probes that a step of pybuild is to be refused, and that work."""
    return {name for name, answer in report.answers.items() if is_hostile(name) and answer == 0}


def _lost(report: Report) -> set[str]:
    """The harmless probes that do not work."""
    return {name for name, answer in report.answers.items() if not is_hostile(name) and answer}


def _differences(reports: Mapping[str, Report], long: bool) -> str:
    ours = reports["pybuild"]
    out = []
    for name, report in reports.items():
        if report is ours:
            continue
        for title, found in (
            (f"Open in {name}, refused here", _open(report) - _open(ours)),
            (f"Refused in {name}, open here", _open(ours) - _open(report)),
            (f"Harmless, works in {name} and not here", _lost(ours) - _lost(report)),
            (f"Harmless, works here and not in {name}", _lost(report) - _lost(ours)),
        ):
            out.append(f"{title}: {', '.join(sorted(found)) or 'nothing'}")
        if long:
            for probe, answer in ours.answers.items():
                other = report.answers[probe]
                if other != answer:
                    out.append(f"    {probe}: {said(answer)} here, {said(other)} in {name}")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())
