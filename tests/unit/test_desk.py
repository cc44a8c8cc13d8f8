"""What processes that were killed leave behind, and who clears it away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfka_dist.training.desk import Desk, clear_abandoned

PROGRAM = """
import sys, time
from dfka_dist.training.desk import Desk
desk = Desk(sys.argv[1])
(desk.folder / "shard").write_text("something")
print(desk.folder, flush=True)
time.sleep(600)
"""
Worker = tuple[subprocess.Popen[str], Path]


@pytest.fixture(autouse=True)
def _own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def start() -> Iterator[Callable[[str], Worker]]:
    """Start a process that sits at a desk of a run: `start(run)`, with its folder."""
    started: list[subprocess.Popen[str]] = []

    def start(run: str) -> Worker:
        command = [sys.executable, "-c", PROGRAM, run]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1], Path(started[-1].stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_desk_that_is_closed_is_gone() -> None:
    desk = Desk("one")
    assert desk.folder.is_dir()
    desk.close()
    assert not desk.folder.exists()


def test_the_desk_of_a_process_that_was_killed_is_cleared_away(
    start: Callable[[str], Worker],
) -> None:
    process, folder = start("one")
    kill(process)
    assert (folder / "shard").exists()
    clear_abandoned("one")
    assert not folder.exists()


def test_the_desk_of_a_process_that_lives_is_left_alone(start: Callable[[str], Worker]) -> None:
    _, folder = start("one")
    clear_abandoned("one")
    assert (folder / "shard").exists()


def test_the_desk_of_another_run_is_left_alone(start: Callable[[str], Worker]) -> None:
    process, folder = start("other")
    kill(process)
    clear_abandoned("one")
    assert (folder / "shard").exists()


def test_a_desk_that_is_cleared_away_while_it_is_made_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its making and its lock."""
    real, moments = os.open, iter([True])

    def open_late(place: str | Path, *how: int, **where: int) -> int:
        if Path(place).name.startswith("dfka-") and next(moments, False):
            clear_abandoned("one")
            assert not Path(place).exists()
        return real(place, *how, **where)

    monkeypatch.setattr(os, "open", open_late)
    desk = Desk("one")
    clear_abandoned("one")
    assert desk.folder.is_dir()
    desk.close()


def test_a_desk_of_a_process_that_dies_soon_is_waited_for(start: Callable[[str], Worker]) -> None:
    (dying, folder), (_, other) = start("one"), start("two")
    threading.Timer(0.5, dying.kill).start()
    clear_abandoned("one", patience=30)
    assert not folder.exists() and other.exists()


def test_a_desk_of_a_process_that_lives_is_not_waited_for_too_long(
    start: Callable[[str], Worker],
) -> None:
    _, folder = start("one")
    clear_abandoned("one", patience=0.3)
    assert folder.exists()
