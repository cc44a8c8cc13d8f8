"""What the README says of tests is so."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
FIGURES = ROOT / "jobs" / "figures"
SEEDS = (0, 1, 2)
RUNS = {
    name: [json.loads((FIGURES / "presets" / f"{name}-{seed}.json").read_text()) for seed in SEEDS]
    for name in ("digits", "fashion", "mixed")
}
"""What runs of the presets left as `result.json`."""


def promises() -> list[tuple[str, str]]:
    """Of the table of what happens when: what happened, and the tests that show what follows."""
    table = README.partition("| what happened | what follows | test |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(row[0], row[-1]) for row in rows]


@pytest.mark.parametrize(("what", "named"), promises())
def test_every_promise_has_its_tests(what: str, named: str) -> None:
    tests = re.findall(r"`([^`]+)`", named)
    assert tests and all((ROOT / "tests" / f"{test}.py").exists() for test in tests), what


def test_the_table_of_faults_is_what_their_report_says() -> None:
    report = json.loads((FIGURES / "faults.json").read_text("utf-8"))
    rows = [f"| {row['what']} | {row['seconds']:.0f} | {_held(row)} |" for row in report]
    assert "\n".join(rows) in README


def _held(row: dict[str, object]) -> str:
    return "yes" if row["holds"] else "no"


def by_seed(name: str, rows: list[list[float]]) -> str:
    """A row for each seed, and their mean."""
    mean = [statistics.fmean(own) for own in zip(*rows, strict=True)]
    labelled = zip([*map(str, SEEDS), "mean"], [*rows, mean], strict=True)
    return "\n".join(f"| {name} | {seed} | {shown(own, ' | ')} |" for seed, own in labelled)


def shown(values: list[float], between: str = ", ") -> str:
    return between.join(f"{value:.4f}" for value in values)


def scores(found: dict[str, Any], *of: str) -> list[float]:
    """Top-1 of each, then mean average precision."""
    return [found[who][which] for which in ("accuracy", "mAP") for who in of]


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_the_figures_of_a_preset_are_those_of_its_runs(name: str) -> None:
    rows = [scores(run["evaluation"], "target", "retention") for run in RUNS[name]]
    assert by_seed(name, rows) in README


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_the_time_of_a_preset_is_that_of_its_runs(name: str) -> None:
    wall, cpu = ([run["seconds"][of] for run in RUNS[name]] for of in ("wall", "cpu"))
    words = " ".join(README.split())
    assert "{:.1f}, {:.1f} and {:.1f} minutes".format(*(seconds / 60 for seconds in wall)) in words
    assert "{:.0f}, {:.0f} and {:.0f} seconds of CPU".format(*cpu) in words


@pytest.mark.parametrize("name", ["digits", "garments"])
def test_the_figures_of_mixed_are_those_of_its_runs(name: str) -> None:
    found = [run["evaluation"]["per_teacher"][name] for run in RUNS["mixed"]]
    assert by_seed(name, [scores(own, "teacher", "target", "retention") for own in found]) in README


def test_what_is_chosen_without_data_is_as_the_table_says() -> None:
    made = json.loads((FIGURES / "selection-fashion" / "selection.json").read_text("utf-8"))
    checkpoints, runs = made["spearman"]["checkpoints"], made["spearman"]["runs"]
    words = " ".join(README.split())
    assert f"of {checkpoints['accuracy']:.2f} over 20 checkpoints" in words
    assert f"of {runs['accuracy']:.2f} over ten runs" in words
    assert f"(with mAP {checkpoints['mAP']:.2f} and {runs['mAP']:.2f};" in words


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_figures_of_a_depth_are_those_of_the_same_runs(depth: int) -> None:
    kept = {name: [at_depth(run, depth) for run in RUNS[name]] for name in ("digits", "fashion")}
    parameters = kept["digits"][0]["parameters"]
    columns = [
        shown([own["retention"][which] for own in kept[name]])
        for name in ("digits", "fashion")
        for which in ("accuracy", "mAP")
    ]
    assert f"| {depth} | {parameters:,} | {' | '.join(columns)} |" in README


def at_depth(run: dict[str, Any], depth: int) -> dict[str, Any]:
    """What a run says of its target with all branches there."""
    if depth == 4:
        return {"retention": run["evaluation"]["retention"]} | run["target"]
    (found,) = [own for own in run["depths"] if set(own["branch_points"].values()) == {depth}]
    return found
