"""A run that was taken down goes on with the same command, and ends as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from running import Ended, run, start

PATIENCE = 400
"""Seconds for a run to come to a checkpoint."""
TRAINING = {
    "steps": 30,
    "rehearsal_steps": 30,
    "fine_tune_steps": 10,
    "batch_size": 8,
    "report_every": 1,
    "memory_megabytes": 1,
    "probe_images": 64,
    "checkpoint": {"every": 10},
}

Start = Callable[..., subprocess.Popen[str]]


def network(folder: Path) -> str:
    """What came out, as a digest."""
    return hashlib.sha256((folder / "target_net" / "model.safetensors").read_bytes()).hexdigest()


def steps(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["global_step"] for line in lines]


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + PATIENCE
    while not list(folder.glob("checkpoints/checkpoint-*/files-0.json")):
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.02)


def trainers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of a run that train."""
    inside = psutil.Process(process.pid).children(recursive=True)
    return [p for p in inside if any("RayTrainWorker" in part for part in p.cmdline())]


@pytest.fixture(scope="module")
def place(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    write(folder, training=TRAINING)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    ended = run("amalgamate", "--config", place / "run.yaml", "--output", place / "undisturbed")
    assert ended.code == 0, ended.err
    return place / "undisturbed"


@pytest.fixture(scope="module")
def killed(place: Path) -> Path:
    """The output folder of a run whose driver was killed behind its first checkpoint."""
    folder = place / "killed"
    process = start("amalgamate", "--config", place / "run.yaml", "--output", folder)
    started: list[psutil.Process] = []
    try:
        wait_for_checkpoint(folder, process)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
    for orphan in started:
        with suppress(psutil.NoSuchProcess):
            orphan.kill()
    process.communicate()
    assert not (folder / "result.json").exists()
    return folder


@pytest.fixture
def refused(call: Callable[..., Ended], place: Path, killed: Path) -> Callable[..., str]:
    """The only line of the job, called with the killed run's folder."""

    def refused(*more: str) -> str:
        config = place / "run.yaml"
        return call("amalgamate", "--config", config, "--output", killed, *more).refusal

    return refused


def test_without_being_told_to_go_on_a_run_refuses_what_is_there(
    refused: Callable[..., str],
) -> None:
    assert "already holds a run (another folder, --resume, or --overwrite)" in refused()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("run.seed=1", "run.seed"),
        ("target.labels=['0','2']", "target.labels"),
        ("losses.batch_norm=3", "losses.batch_norm"),
    ],
)
def test_another_run_does_not_go_on_from_there(
    refused: Callable[..., str], change: str, key: str
) -> None:
    refusal = refused("--resume", "--set", change)
    assert refusal.startswith(f"error: {key}: is ") and "when the run began" in refusal


def again(place: Path, folder: Path, *more: str) -> Ended:
    return run("amalgamate", "--config", place / "run.yaml", "--output", folder, *more)


def test_a_run_whose_driver_was_killed_goes_on_with_the_same_command(
    place: Path, killed: Path, undisturbed: Path
) -> None:
    ended = again(place, killed, "--resume", "--set", "training.checkpoint.every=7")
    assert ended.code == 0, ended.err
    assert network(killed) == network(undisturbed)
    assert steps(killed) == steps(undisturbed)


def test_a_run_that_is_over_has_nothing_left_to_do(
    call: Callable[..., Ended], place: Path, undisturbed: Path
) -> None:
    config = place / "run.yaml"
    ended = call("amalgamate", "--config", config, "--output", undisturbed, "--resume")
    assert (ended.code, ended.out) == (0, f"this run is over: {undisturbed / 'result.json'}\n")


def test_a_run_whose_worker_was_killed_goes_on_by_itself(place: Path, undisturbed: Path) -> None:
    folder = place / "worker"
    process = start("amalgamate", "--config", place / "run.yaml", "--output", folder)
    try:
        wait_for_checkpoint(folder, process)
        (trainer,) = trainers(process)
        trainer.kill()
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert network(folder) == network(undisturbed)
    assert steps(folder) == steps(undisturbed)
