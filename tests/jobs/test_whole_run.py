"""One run from the first command to the last file, as a user starts it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import EXACT, Ended, Finished, keys, run, traces

from dfka_dist.config import TeacherSpec
from dfka_dist.models.target import TargetNet

STEPS = {"joint": 8, "rehearsal": 4, "filters": 2, "branches": 2, "fine_tune": 4}
LABELS = ["0", "1", "2", "3"]
SCORES = {"mAP": None, "accuracy": None}
BRIEF = {
    "name": None,
    "parameters": None,
    "agreement": None,
    "target": SCORES,
    "retention": SCORES,
    "per_teacher": {"low": SCORES, "high": SCORES},
}
RESULT = {
    "name": None,
    "version": None,
    "seed": None,
    "recipe": None,
    "images": None,
    "start": None,
    "steps": None,
    "seconds": {"wall": None, "cpu": None, "saving": None},
    "phases": [{"name": None, "steps": None, "seconds": None}] * 5,
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
    "unscored": None,
    "chosen": None,
    "candidates": [BRIEF] * 9,
    "depths": [BRIEF | {"branch_points": {"low": None, "high": None}}] * 2,
    "dual_losses": {name: dict.fromkeys("123") for name in ("low", "high")},
}
"""The names of design.md, in its order."""


@pytest.fixture(scope="module")
def again(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    make_teacher: Callable[..., TeacherSpec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """The same run without test data, checkpoints and other depths, where results go if nobody says
    where; it keeps its images, and has a teacher that knows nothing of what is wanted."""
    place = tmp_path_factory.mktemp("again")
    same = [make_teacher(spec["name"], spec["labels"]).model_dump() for spec in tiny["teachers"]]
    idle = make_teacher("idle", ["7", "8"]).model_dump()
    config = write(
        place,
        evaluations=None,
        teachers=[*same, idle],
        training=tiny["training"] | EXACT | {"archive": "images"},
        target=tiny["target"] | {"labels": LABELS},
        losses={"distill": {"idle": 3.0}},
    )
    before = traces()
    ended = run("amalgamate", "--config", config, cwd=place)
    return Finished(config, place / "runs" / "tiny", ended, traces() - before)


@pytest.fixture(scope="module")
def alone(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    again: Finished,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A run that learns from the images that another kept, when all teachers' files are gone."""
    for spec in yaml.safe_load(again.config.read_text())["teachers"]:
        Path(spec["weights"]).unlink()
    place = tmp_path_factory.mktemp("alone")
    images = f"archive:{again.config.parent / 'images'}"
    config = write(
        place,
        teachers=[spec | {"weights": None} for spec in tiny["teachers"]],
        training=tiny["training"] | {"recipe": "distill", "images": images},
    )
    folder, before = place / "run", traces()
    ended = run("amalgamate", "--config", config, "--output", folder)
    return Finished(config, folder, ended, traces() - before)


def test_it_ends_with_code_0(finished: Finished) -> None:
    assert finished.ended.code == 0, finished.ended.err


def test_it_leaves_nothing_outside_of_its_folder(finished: Finished, again: Finished) -> None:
    assert finished.traces | again.traces == set()


def test_nobody_listens_beyond_the_loopback(finished: Finished) -> None:
    servers = {name for _, name in finished.listened}
    assert any("gcs_server" in name for name in servers)
    assert any("raylet" in name for name in servers)
    assert any("RayTrainWorker" in name for name in servers), "torch's store"
    assert {name for address, name in finished.listened if not is_loopback(address)} == set()


def is_loopback(address: str) -> bool:
    known = ip_address(address)
    inner = known.ipv4_mapped if isinstance(known, IPv6Address) else None
    return (inner or known).is_loopback


def test_it_leaves_every_file_that_is_promised(finished: Finished) -> None:
    found = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    kept = {name for name in found if name.startswith("checkpoints/")} - {"checkpoints/owner"}
    assert any(name.startswith("checkpoints/checkpoint-") for name in kept)
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents.")}
    assert events and found - events - kept == {
        "result.json",
        "target_net/config.json",
        "target_net/model.safetensors",
        "target_net/README.md",
        "metrics.jsonl",
        "samples.png",
        "report.html",
        "resolved.yaml",
        "run.log",
        "checkpoints/owner",
    }


def test_its_result_has_the_names_that_are_promised(finished: Finished) -> None:
    found = finished.result
    found["data_free"] = dict.fromkeys(found["data_free"])  # a figure or more for each of these
    assert keys(found) == RESULT


def test_its_result_has_a_network_for_every_other_depth(finished: Finished) -> None:
    points = [each["branch_points"] for each in finished.result["depths"]]
    assert points == [{"low": depth, "high": depth} for depth in (1, 2)]
    assert (finished.folder / "report.html").read_text().count("<circle ") == 3


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
    found = again.result
    assert (found["evaluation"], found["unscored"]) == (None, "no data")


def test_without_test_data_the_report_says_so(again: Finished) -> None:
    page = (again.folder / "report.html").read_text()
    assert "There were no test data for this run" in page


def test_without_test_data_stdout_shows_the_agreement(again: Finished) -> None:
    assert again.ended.out.startswith("no score for all labels at once; agreement on ")


@pytest.mark.exhaustive
def test_a_target_learns_from_an_archive_when_its_teachers_are_gone(alone: Finished) -> None:
    assert alone.ended.code == 0, alone.ended.err
    net = TargetNet.from_pretrained(alone.folder / "target_net")
    assert net.predict(torch.rand(5, 1, 16, 16)).shape == (5, len(LABELS))
    assert alone.traces == set()


@pytest.mark.exhaustive
def test_a_target_without_teachers_is_scored_alone(alone: Finished) -> None:
    found = alone.result
    told = found["evaluation"]
    assert (found["images"], found["unscored"]) == ("archive", None)
    assert told["target"]["accuracy"] is not None and told["target"]["mAP"] is not None
    assert told["teachers"] is None and told["retention"] is None
    (warning,) = [line for line in alone.ended.err.splitlines() if line.startswith("warning: ")]
    assert warning.endswith("so the target is scored alone")
    assert re.match(r"squares: top-1 \d\.\d{4}, no teachers to be beside\n", alone.ended.out)


@pytest.mark.exhaustive
def test_evaluating_a_target_without_teachers_gives_the_same_figures(
    alone: Finished, call: Callable[..., Ended]
) -> None:
    target = alone.folder / "target_net"
    ended = call("evaluate", "--target-net", target, "--config", alone.config)
    assert json.loads(ended.out) == alone.result["evaluation"]
    assert ended.err.endswith("so the target is scored alone\n")


@pytest.mark.exhaustive
def test_a_run_goes_on_with_that_target_and_with_no_other(
    alone: Finished, call: Callable[..., Ended], tmp_path: Path
) -> None:
    start = f"target.start={alone.folder / 'target_net'}"
    given = ("--config", alone.config, "--output", tmp_path / "o", "--dry-run", "--set", start)
    assert call("amalgamate", *given).code == 0
    other = call("amalgamate", *given, "--set", 'target.labels=["0", "3"]')
    assert other.refusal.startswith("error: target.start: ")


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
