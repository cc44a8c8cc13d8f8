"""A run that cannot end says so in one line, keeps its log, and leaves nothing running."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import Ended, run, start

PATIENCE = 120
"""Seconds for a run to come to its first steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failed")


@pytest.fixture(scope="module")
def failed(tiny: dict[str, Any], write: Callable[..., Path], folder: Path) -> Ended:
    """A run whose second teacher gives up after a few batches."""
    low, high = tiny["teachers"]
    own = {"channels": 1, "labels": 2, **high["arguments"]}
    tiring = high | {"source": "failing_teacher:TiringConvNet", "arguments": own}
    config = write(folder, teachers=[low, tiring])
    return run("amalgamate", "--config", config, "--output", folder / "run")


def test_a_run_that_fails_ends_with_code_3(failed: Ended) -> None:
    assert failed.code == 3


def test_a_run_that_fails_says_why_and_where_the_log_is_in_its_last_line(
    failed: Ended, folder: Path
) -> None:
    said = "error: teacher high failed: this teacher cannot count any further"
    assert failed.err.splitlines()[-1] == f"{said} (the log is {folder / 'run' / 'run.log'})"


def test_a_run_that_fails_says_nothing_else_but_its_progress(failed: Ended) -> None:
    strange = [line for line in failed.err.splitlines()[:-1] if not line.startswith("tiny: ")]
    assert (strange, failed.out) == ([], "")


def test_the_log_of_a_run_that_failed_holds_the_whole_story(failed: Ended, folder: Path) -> None:
    log = (folder / "run" / "run.log").read_text()
    assert "Traceback (most recent call last)" in log and "cannot count any further" in log


def test_a_run_that_failed_leaves_no_result(failed: Ended, folder: Path) -> None:
    assert not (folder / "run" / "result.json").exists()


@dataclass(frozen=True)
class Interrupted:
    ended: Ended
    seconds: float
    left: list[psutil.Process]


@pytest.fixture(scope="module")
def interrupted(
    write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Interrupted]:
    """A run that was interrupted at its first steps."""
    place = tmp_path_factory.mktemp("interrupted")
    long = {"steps": 1_000_000, "batch_size": 8, "report_every": 1, "memory_megabytes": 1}
    config = write(place, training=long)
    process = start("amalgamate", "--config", config, "--output", place / "run")
    try:
        wait_for(place / "run" / "metrics.jsonl", process)
        started = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    seconds = time.monotonic() - began
    _, left = psutil.wait_procs(started, timeout=10)
    assert started, "the run had started nothing"
    yield Interrupted(Ended(process.returncode, out, err), seconds, left)
    for orphan in left:
        orphan.kill()


def wait_for(path: Path, process: Any) -> None:
    patience = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.2)
    assert path.exists(), process.stderr.read() if process.poll() is not None else "it is slow"


def test_a_run_that_is_interrupted_ends_with_code_4(interrupted: Interrupted) -> None:
    assert interrupted.ended.code == 4


def test_a_run_that_is_interrupted_ends_soon(interrupted: Interrupted) -> None:
    assert interrupted.seconds < 30


def test_a_run_that_is_interrupted_leaves_no_process(interrupted: Interrupted) -> None:
    assert interrupted.left == []


def test_a_run_that_is_interrupted_says_so_and_nothing_else(interrupted: Interrupted) -> None:
    lines = interrupted.ended.err.splitlines()
    strange = [line for line in lines if not line.startswith("tiny: ")]
    assert strange == ["error: stopped"]
