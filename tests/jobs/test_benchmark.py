"""`jobs/benchmark.py`: its command line, and the processes whose steps it times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import Ended

from dfka_dist.benchmarks.serving.arm import Arm, Order, Way
from dfka_dist.config import PRESETS

Call = Callable[..., Ended]


def test_a_dry_run_names_every_measure_of_serving(call: Call) -> None:
    lines = call("benchmark", "serving", "--dry-run").out.splitlines()
    assert [line.partition(":")[0] for line in lines][:3] == ["steps", "precision", "server"]


def test_serving_has_teachers_of_its_own(call: Call, config: Path) -> None:
    assert call("benchmark", "serving", "--config", config).refusal.startswith("error: --config: ")


@pytest.mark.parametrize("what", ["quality", "search", "selection"])
def test_a_table_of_runs_needs_a_run(call: Call, what: str) -> None:
    refusal = call("benchmark", what).refusal
    assert refusal == f"error: --config: is missing (a run, for the table {what})"


@pytest.mark.parametrize("what", ["quality", "search", "selection"])
def test_a_table_of_runs_needs_data_of_all_labels_before_it_runs_any(call: Call, what: str) -> None:
    refusal = call("benchmark", what, "--config", PRESETS / "mixed.yaml", "--dry-run").refusal
    assert refusal == "error: evaluations: cover not all labels (a data set of all labels)"


def test_a_table_is_not_overwritten(call: Call) -> None:
    assert call("benchmark", "serving", "--overwrite").refusal.startswith("error: --overwrite: ")


def test_a_table_cannot_lie_in_a_file(call: Call, config: Path) -> None:
    refusal = call("benchmark", "serving", "--output", config).refusal
    assert refusal.startswith("error: --output: ")


SERVED = pytest.param("served", 1, "at once", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(("way", "threads", "order"), [("local", 2, "turns"), SERVED])
def test_an_arm_takes_as_many_steps_as_it_is_told_and_says_how_long_one_took(
    config: Path, way: Way, threads: int, order: Order
) -> None:
    with Arm(config, way, threads, order) as arm:
        told = [arm.steps(count) for count in (1, 3)]
    assert all(0 < each["seconds"] < 10 for each in told)
    assert all((each["waited"] > 0) == (way == "served") for each in told)
