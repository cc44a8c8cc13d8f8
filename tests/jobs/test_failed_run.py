"""A run that cannot end says so in one line, keeps its log, and leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from objectstore import SECRET, ObjectStore
from running import Ended, run, start, traces

PATIENCE = 400
"""Seconds for a run to come to its first steps."""
SOON = 20.0
"""Seconds for a run to end that waits for nothing."""


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
class Stopped:
    ended: Ended
    seconds: float
    """From the last signal to the end."""
    left: list[psutil.Process]
    """Of what it had started."""
    traces: set[Path]
    """Outside of its folder."""
    checkpoints: list[str]


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """What a terminal does: everything that was started there and has not left gets the signal."""
    os.killpg(process.pid, signal.SIGINT)


def sigterm_twice(process: subprocess.Popen[str]) -> None:
    """Of a cluster that stops the job, and then the pod that it runs in."""
    process.terminate()
    time.sleep(0.7)
    process.terminate()


STOPS = [
    ctrl_c,
    pytest.param(sigterm_twice, marks=pytest.mark.exhaustive),
]
LONG = {"steps": 1_000_000, "rehearsal_steps": 0, "batch_size": 8, "report_every": 1}


@pytest.fixture(scope="module", params=STOPS, ids=["ctrl_c", "sigterm_twice"])
def stopped(
    request: pytest.FixtureRequest,
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stopped]:
    """A run that was stopped at its first steps."""
    place = tmp_path_factory.mktemp("stopped")
    with stopped_by(request.param, write(place, training=LONG), place) as stopped:
        yield stopped


@contextmanager
def stopped_by(
    how: Callable[[subprocess.Popen[str]], None], config: Path, place: Path
) -> Iterator[Stopped]:
    """A run of a configuration, in `run` of a place."""
    before = traces()
    process = start("amalgamate", "--config", config, "--output", place / "run")
    try:
        wait_for(place / "run" / "metrics.jsonl", process)
        started = psutil.Process(process.pid).children(recursive=True)
        assert started, "the run had started nothing"
        how(process)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        seconds = time.monotonic() - began
    finally:
        process.kill()
    _, left = psutil.wait_procs(started, timeout=10)
    made = [p.name for p in place.glob("run/checkpoints/checkpoint-*")]
    yield Stopped(Ended(process.returncode, out, err), seconds, left, traces() - before, made)
    for orphan in left:
        orphan.kill()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.2)
    assert path.exists(), process.communicate() if process.poll() is not None else "it is slow"


def test_a_run_that_is_stopped_ends_with_code_4(stopped: Stopped) -> None:
    assert stopped.ended.code == 4


def test_a_run_that_is_stopped_ends_soon(stopped: Stopped) -> None:
    assert stopped.seconds < 30


def test_a_run_that_is_stopped_leaves_no_process(stopped: Stopped) -> None:
    assert stopped.left == []


def test_a_run_that_is_stopped_leaves_no_file_elsewhere(stopped: Stopped) -> None:
    assert stopped.traces == set()


def test_a_run_that_is_stopped_says_so_and_nothing_else(stopped: Stopped) -> None:
    lines = stopped.ended.err.splitlines()
    (said,) = [line for line in lines if not line.startswith("tiny: ")]
    kept = r"error: stopped with a checkpoint at step \d+; --resume goes on from the newest"
    assert re.fullmatch(kept, said)


def test_a_run_that_is_stopped_leaves_the_checkpoint_that_it_speaks_of(stopped: Stopped) -> None:
    step = re.search(r"at step (\d+);", stopped.ended.err)
    assert step is not None and stopped.checkpoints == [f"checkpoint-{int(step[1]):09}"]


@pytest.mark.exhaustive
def test_a_second_ctrl_c_ends_a_run_at_once_while_its_checkpoint_is_on_its_way(
    object_store: ObjectStore,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To a storage that does not answer."""
    asked, released = threading.Event(), threading.Event()

    def hold(path: str) -> bool:
        if "/checkpoint-" in path:
            asked.set()
            released.wait(PATIENCE)
        return False

    def ctrl_c_twice(process: subprocess.Popen[str]) -> None:
        ctrl_c(process)
        assert asked.wait(60), "no checkpoint was on its way"
        ctrl_c(process)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage = f"s3://bucket/{tmp_path.name}?{object_store.options}"
    config = write(tmp_path, training=LONG | {"checkpoint": {"storage": storage}})
    object_store.is_unavailable = hold
    try:
        with stopped_by(ctrl_c_twice, config, tmp_path) as stopped:
            assert stopped.ended.code == 4 and stopped.seconds < SOON
            assert stopped.ended.err.splitlines()[-1] == "error: stopped"
            assert (stopped.left, stopped.traces) == ([], set())
    finally:
        released.set()
        object_store.is_unavailable = lambda path: False
    lists = [p for p in object_store.paths(tmp_path.name) if p.endswith("files-0.json")]
    assert lists == []
