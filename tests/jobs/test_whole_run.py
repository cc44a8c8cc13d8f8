"""One run from the first command to the last file, as a user starts it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Ended, keys, run, traces

from dfka_dist.config import TeacherSpec
from dfka_dist.models.target import TargetNet

STEPS = {"joint": 8, "rehearsal": 4, "fine_tune": 4}
LABELS = ["0", "1", "2", "3"]
SCORES = {"mAP": None, "accuracy": None}
RESULT = {
    "name": None,
    "version": None,
    "seed": None,
    "recipe": None,
    "steps": None,
    "seconds": {"wall": None, "cpu": None, "saving": None},
    "phases": [{"name": None, "steps": None, "seconds": None}] * 3,
    "teachers": [
        {"name": None, "task": None, "labels": [None] * 2, "parameters": None, "sha256": None}
    ]
    * 2,
    "target": {
        "parameters": None,
        "labels": [None] * 4,
        "branch_points": {"low": None, "high": None},
    },
    "data_free": {"agreement": None, "coverage": None},
    "evaluation": {
        "dataset": None,
        "examples": None,
        "teachers": SCORES,
        "target": SCORES,
        "retention": SCORES,
        "per_label": {label: {"teacher": None, "target": None} for label in LABELS},
        "per_teacher": {
            name: {"dataset": None, "examples": None}
            | {"teacher": SCORES, "target": SCORES, "retention": SCORES}
            for name in ("low", "high")
        },
    },
    "chosen": None,
    "candidates": [
        {"name": None, "parameters": None, "agreement": None, "target": SCORES}
        | {"retention": SCORES, "per_teacher": {"low": SCORES, "high": SCORES}}
    ]
    * 9,
    "depths": [],
    "dual_losses": {},
}
"""The names of design.md, in its order."""


@dataclass(frozen=True)
class Finished:
    config: Path
    folder: Path
    ended: Ended
    traces: set[Path]
    """That it left outside of its folder."""

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found


@pytest.fixture(scope="module")
def finished(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny run, with test data."""
    place = tmp_path_factory.mktemp("finished")
    config, folder, before = write(place), place / "run", traces()
    ended = run("amalgamate", "--config", config, "--output", folder)
    return Finished(config, folder, ended, traces() - before)


@pytest.fixture(scope="module")
def again(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    make_teacher: Callable[..., TeacherSpec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """The same run without test data, where results go if nobody says where; and with a teacher
    that knows nothing of what is wanted."""
    place = tmp_path_factory.mktemp("again")
    idle = make_teacher("idle", ["7", "8"]).model_dump()
    config = write(
        place,
        evaluations=None,
        teachers=[*tiny["teachers"], idle],
        target=tiny["target"] | {"labels": LABELS},
        losses={"distill": {"idle": 3.0}},
    )
    before = traces()
    ended = run("amalgamate", "--config", config, cwd=place)
    return Finished(config, place / "runs" / "tiny", ended, traces() - before)


def test_it_ends_with_code_0(finished: Finished) -> None:
    assert finished.ended.code == 0, finished.ended.err


def test_it_leaves_nothing_outside_of_its_folder(finished: Finished, again: Finished) -> None:
    assert finished.traces | again.traces == set()


def test_it_leaves_every_file_that_is_promised(finished: Finished) -> None:
    found = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents.")}
    assert events and found - events == {
        "result.json",
        "target_net/config.json",
        "target_net/model.safetensors",
        "target_net/README.md",
        "metrics.jsonl",
        "samples.png",
        "report.html",
        "resolved.yaml",
        "run.log",
    }


def test_its_result_has_the_names_that_are_promised(finished: Finished) -> None:
    found = finished.result
    found["data_free"] = dict.fromkeys(found["data_free"])  # a figure or more for each of these
    assert keys(found) == RESULT


def test_its_metrics_are_a_record_every_other_step(finished: Finished) -> None:
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    told = [(record["phase"], record["step"]) for record in map(json.loads, lines)]
    assert told == [(phase, n) for phase, most in STEPS.items() for n in range(2, most + 1, 2)]


def test_its_log_tells_where_servers_are_and_how_every_phase_ended(finished: Finished) -> None:
    log = (finished.folder / "run.log").read_text()
    assert "server of low, replica 0" in log
    assert all(f": {phase} {steps}/{steps} " in log for phase, steps in STEPS.items())


def test_its_network_loads_and_predicts(finished: Finished) -> None:
    net = TargetNet.from_pretrained(finished.folder / "target_net")
    predicted = net.predict(torch.rand(5, 1, 16, 16))
    assert predicted.shape == (5, len(LABELS)) and net.labels == LABELS


def test_evaluating_the_network_again_gives_the_same_figures(finished: Finished) -> None:
    target = finished.folder / "target_net"
    ended = run("evaluate", "--target-net", target, "--config", finished.config)
    assert json.loads(ended.out) == finished.result["evaluation"]


def test_stderr_holds_nothing_but_its_own_progress(finished: Finished) -> None:
    strange = [line for line in finished.ended.err.splitlines() if not line.startswith("tiny: ")]
    assert strange == []


def test_stdout_holds_nothing_but_the_result_in_a_few_lines(finished: Finished) -> None:
    score = r"squares: top-1 \d\.\d{4}, the teachers side by side \d\.\d{4}, kept \d\.\d{4}"
    folder = re.escape(str(finished.folder))
    expected = rf"{score}\nnetwork: {folder}/target_net\nreport:  {folder}/report\.html\n"
    assert re.fullmatch(expected, finished.ended.out)


def test_the_same_seed_gives_the_same_network_byte_for_byte(
    finished: Finished, again: Finished
) -> None:
    one, other = (
        (each.folder / "target_net" / "model.safetensors").read_bytes()
        for each in (finished, again)
    )
    assert one == other


def test_a_teacher_that_knows_nothing_of_what_is_wanted_is_left_out_with_a_warning(
    again: Finished,
) -> None:
    warnings = [line for line in again.ended.err.splitlines() if line.startswith("warning: ")]
    what = "knows none of the labels that are wanted, and is left out"
    assert warnings == [f"warning: the teacher idle {what}"]
    assert [teacher["name"] for teacher in again.result["teachers"]] == ["low", "high"]


def test_without_test_data_there_is_no_evaluation(again: Finished) -> None:
    assert again.result["evaluation"] is None


def test_without_test_data_the_report_says_so(again: Finished) -> None:
    page = (again.folder / "report.html").read_text()
    assert "There were no test data for this run" in page


def test_without_test_data_stdout_shows_the_agreement(again: Finished) -> None:
    assert again.ended.out.startswith("no score for all labels at once; agreement on ")


def test_the_report_is_one_file_that_opens_without_a_network(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']*", page) == []


def test_the_resolved_run_can_be_run_from_anywhere(
    finished: Finished, call: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = finished.folder / "resolved.yaml"
    shown = call("amalgamate", "--config", resolved, "--dry-run").out
    tree = yaml.safe_load(shown.partition("placement")[0])
    assert tree == yaml.safe_load(resolved.read_text())


def test_a_second_run_into_the_same_folder_is_refused(
    finished: Finished, call: Callable[..., Ended]
) -> None:
    given = ("--config", finished.config, "--output", finished.folder)
    assert call("amalgamate", *given).refusal.startswith(f"error: --output: {finished.folder} ")


def test_a_dry_run_may_overwrite_and_does_not(
    finished: Finished, call: Callable[..., Ended]
) -> None:
    before = finished.result
    given = ("--config", finished.config, "--output", finished.folder)
    assert call("amalgamate", *given, "--overwrite", "--dry-run").code == 0
    assert finished.result == before
