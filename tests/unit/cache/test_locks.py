"""Locks: shared and exclusive, and the lock file that exists only while it is used."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cache.locks import single_flight, try_lock


def test_shared_and_exclusive(tmp_path: Path) -> None:
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    assert try_lock(fds[0], shared=True)
    assert try_lock(fds[1], shared=True)
    assert not try_lock(fds[2])
    os.close(fds[0])
    os.close(fds[1])
    assert try_lock(fds[2])
    os.close(fds[2])


def test_single_flight_runs_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with single_flight(str(tmp_path), "key"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 400
    assert os.listdir(tmp_path) == []


def test_single_flight_ends_after_an_error(tmp_path: Path) -> None:
    try:
        with single_flight(str(tmp_path), "key"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert os.listdir(tmp_path) == []
