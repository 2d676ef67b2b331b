"""Fixtures for everyone: a place that is fast for many files, the command, base images."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from harness import PYBUILD, Pybuild

ROOT = Path(__file__).resolve().parent.parent
ON_ROOT = os.geteuid() == 0
LONG = [
    "e2e/test_golden.py",
    "e2e/confinement/",
    "e2e/test_places.py",
    "e2e/test_rootless.py",
    "e2e/test_own_image.py",
    "e2e/test_sandbox.py",
    "e2e/chroot_confinement/",
]
LONGEST = 300  # seconds for a test with what it is the first to need, such as a base image


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put temporary folders on tmpfs: a disk without a journal is many times too slow for them.

    Give each test process namespaces of its own: it looks for what its tests leave on the machine.
    What runs us in the background ignores Ctrl-C, and so would the builds that tests interrupt.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)
    if ON_ROOT and getattr(config.option, "tx", None):
        python = f"popen//python={ROOT}/tests/support/alone {sys.executable}"
        config.option.tx = [python if spec == "popen" else spec for spec in config.option.tx]
    shm = Path("/dev/shm")
    if config.option.basetemp is None and os.access(shm, os.W_OK):
        config.option.basetemp = tempfile.mkdtemp(prefix="pybuild-tests.", dir=shm)
        config.add_cleanup(lambda: remove(config.option.basetemp))


def remove(folder: str) -> None:
    """Remove a folder, deep and odd trees too."""
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that hangs, and what it has started: a failure that names it is worth more than silence.

    It is told again and again, as it may wait once more on its way out.
    """

    def give_up(_number: int, _frame: FrameType | None) -> None:
        for process in _children():
            os.kill(process, signal.SIGKILL)
        pytest.fail(f"{item.nodeid} has not ended after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LONGEST, 10)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _children() -> list[int]:
    """The processes that this one has started."""
    tasks = Path("/proc/self/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip real containers without root; begin with the modules that take long, so that none ends alone."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONG) if name in str(item.path)), len(LONG)))
    if not ON_ROOT:
        why = pytest.mark.skip(reason="needs root: builds make namespaces and mounts")
        for item in items:
            if item.get_closest_marker("e2e") or item.get_closest_marker("interop"):
                item.add_marker(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in _left_out(terminalreporter):
        terminalreporter.write_line(f"NOT RUN although this is root: {report.nodeid}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On a root machine nothing that needs namespaces, a registry or a peer may be skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and _left_out(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_out(reporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    skipped = reporter.stats.get("skipped", [])
    return [r for r in skipped if ON_ROOT and {"e2e", "interop"} & set(r.keywords)]


@pytest.fixture(scope="session")
def tools() -> dict[str, str]:
    """The distribution's programs that tests use, by name; a missing one fails who asks."""
    names = (
        "busybox mmdebstrap skopeo umoci podman docker dockerd containerd ctr docker-registry ip tar".split()
    )
    path = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")
    return {name: found for name in names if (found := shutil.which(name, path=path))}


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of busybox:latest, made by the samples' own script."""
    work = tmp_path_factory.mktemp("busybox")
    pybuild = Pybuild(work / "store", work)
    env = pybuild.environment({"PATH": f"{Path(PYBUILD).parent}:{os.environ['PATH']}"})
    subprocess.run([ROOT / "samples/make-bases", "busybox"], env=env, check=True, capture_output=True)
    archive = work / "busybox.tar"
    pybuild("save", "busybox", "-o", archive).ok()
    return archive


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Path:
    """One store with busybox in it, for tests that do not look at the store itself."""
    work = tmp_path_factory.mktemp("shared")
    Pybuild(work / "store", work)("load", busybox).ok()
    return work / "store"


@pytest.fixture
def pybuild(shared_store: Path, tmp_path: Path) -> Pybuild:
    """The command on the shared store."""
    return Pybuild(shared_store, tmp_path)


@pytest.fixture
def fresh(busybox: Path, tmp_path: Path) -> Iterator[Pybuild]:
    """The command on a store of its own, with busybox in it."""
    made = Pybuild(tmp_path / "store", tmp_path)
    made("load", busybox).ok()
    yield made
