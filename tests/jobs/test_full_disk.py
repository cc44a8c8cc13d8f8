"""A run whose results and checkpoints share a disk that is full for a while."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import mounted, run, start

STEPS = 60
SAID = ("metrics.jsonl waits until it can be written", "no checkpoint at step ")
"""What warnings say, each at least once, before there is room again."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    with mounted(tmp_path / "disk", "size=20m") as place:
        yield place


def fill(place: Path) -> None:
    """Until nothing more goes in."""
    with place.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            return


def until_said(process: subprocess.Popen[str]) -> list[str]:
    """Lines of a job, until all is said."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip("\n"))
        if all(any(what in each for each in lines) for what in SAID):
            return lines
    raise AssertionError(f"it ended: {lines}")


@pytest.mark.exhaustive
def test_a_run_whose_results_find_no_room_leaves_none_and_can_go_on(
    tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path, disk: Path
) -> None:
    config, place = write(tmp_path, training=tiny["training"] | {"report_every": 1}), disk / "run"
    arguments = ("amalgamate", "--config", config, "--output", place, "--resume")
    with start(*arguments) as process:
        try:
            while not (place / "metrics.jsonl").exists() and process.poll() is None:
                time.sleep(0.05)
            fill(disk / "ballast")
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 3 and "No space left" in err.splitlines()[-1], err
    left = {path.name for path in place.iterdir()}
    assert not {"result.json", "target_net"} & left and not any(".part" in name for name in left)
    (disk / "ballast").unlink()
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert {"result.json", "target_net", "report.html"} <= {p.name for p in place.iterdir()}


@pytest.mark.exhaustive  # distributed/test_keeping_together shows a full disk of checkpoints
def test_a_run_goes_on_while_the_disk_of_its_results_is_full(
    tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path, disk: Path
) -> None:
    """Without a storage of its own; no record is lost, and nothing but warnings is said."""
    long = {"steps": STEPS, "report_every": 1, "checkpoint": {"every": 5}}
    config = write(tmp_path, training=tiny["training"] | long)
    metrics = disk / "run" / "metrics.jsonl"
    with start("amalgamate", "--config", config, "--output", disk / "run") as process:
        try:
            while not metrics.exists() and process.poll() is None:
                time.sleep(0.05)
            fill(disk / "ballast")
            said = until_said(process)
            (disk / "ballast").unlink()
            said += process.communicate(timeout=300)[1].splitlines()
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert [line for line in said if not line.startswith("tiny: ")] == []
    assert sum(SAID[0] in line for line in said) == 1
    told = [json.loads(line)["global_step"] for line in metrics.read_text().splitlines()]
    assert told == list(range(1, told[-1] + 1)) and told[-1] >= STEPS
