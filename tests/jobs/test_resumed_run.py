"""What `--resume` says of the checkpoints that are there; how runs go on is in `tests/cluster`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Ended, Finished, run

from dfka_dist import results
from dfka_dist.config import TeacherSpec
from dfka_dist.tuning import outcome

Refused = Callable[..., str]


@pytest.fixture
def refused(call: Callable[..., Ended], finished: Finished) -> Refused:
    """The only line of the job, called with the run's folder."""

    def refused(*more: str) -> str:
        given = ("--config", finished.config, "--output", finished.folder)
        return call("amalgamate", *given, *more).refusal

    return refused


def test_without_being_told_to_go_on_a_run_refuses_what_is_there(refused: Refused) -> None:
    assert "already holds a run (another folder, --resume, or --overwrite)" in refused()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("run.seed=1", "run.seed"),
        ("target.labels=['0','2']", "target.labels"),
        ("losses.batch_norm=3", "losses.batch_norm"),
        ("target.arguments.widths=[4,6,9]", "target.arguments.widths"),
    ],
)
def test_another_run_does_not_go_on_from_there(refused: Refused, change: str, key: str) -> None:
    refusal = refused("--resume", "--set", change)
    assert refusal.startswith(f"error: {key}: is ") and "when the run began" in refusal


def test_other_teachers_do_not_go_on_from_there(
    refused: Refused, make_teacher: Callable[..., TeacherSpec]
) -> None:
    """Not by where their files lie, but by what these hold."""
    other = make_teacher("low", ["0", "1"], seed=7)
    refusal = refused("--resume", "--set", f"teachers.0.weights={other.weights}")
    assert refusal.startswith("error: teachers.0.") and "when the run began" in refusal


@pytest.mark.exhaustive
def test_a_run_whose_checkpoints_are_all_broken_ends_with_code_3_and_leaves_them(
    finished: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "done"
    shutil.copytree(finished.folder, folder)
    (folder / "result.json").unlink()
    broken = list(folder.glob("checkpoints/checkpoint-*/run.json"))
    for place in broken:
        place.write_bytes(place.read_bytes()[:-1])
    ended = run("amalgamate", "--config", finished.config, "--output", folder, "--resume")
    said = f"error: no checkpoint in {folder / 'checkpoints'} is whole: "
    assert ended.code == 3 and ended.err.splitlines()[-1].startswith(said), ended.err
    assert broken and all(place.exists() for place in broken)
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "key", "what"),
    [
        ("training.checkpoint.every=0", "every", "is 0, and {} holds checkpoints"),
        ("training.checkpoint.storage=elsewhere", "storage", "holds no checkpoint, and the run in"),
        ("run.seed=1 training.checkpoint.every=0", "", "error: run.seed: "),
    ],
)
def test_a_run_with_checkpoints_does_not_begin_anew_by_mistake(
    call: Callable[..., Ended], finished: Finished, tmp_path: Path, change: str, key: str, what: str
) -> None:
    folder = tmp_path / "done"
    shutil.copytree(finished.folder, folder)
    (folder / "result.json").unlink()
    sets = [a for each in change.split() for a in ("--set", each)]
    config = finished.config
    refusal = call("amalgamate", "--config", config, "--output", folder, "--resume", *sets).refusal
    assert what.format(folder / "checkpoints") in refusal
    assert refusal.startswith(f"error: training.checkpoint.{key}: " if key else "error: run.seed: ")


def test_a_run_that_is_over_has_nothing_left_to_do(
    call: Callable[..., Ended], finished: Finished
) -> None:
    config, folder = finished.config, finished.folder
    ended = call("amalgamate", "--config", config, "--output", folder, "--resume")
    assert (ended.code, ended.out) == (0, f"this run is over: {folder / 'result.json'}\n")


@pytest.mark.parametrize(
    ("left", "over"), [(None, False), ("", False), ('{"name": "a', False), ('{"name": "a"}', True)]
)
def test_a_run_is_over_when_its_result_is_whole(
    tmp_path: Path, left: str | None, over: bool
) -> None:
    if left is not None:
        (tmp_path / "result.json").write_text(left)
    assert results.is_over(tmp_path) == over


def test_a_run_that_is_over_is_copied_to_the_storage_and_is_over_there_too(
    call: Callable[..., Ended], finished: Finished, tmp_path: Path
) -> None:
    folder, copy = finished.folder, tmp_path / "storage" / "tiny" / "result"
    stored = (
        f"training.checkpoint.storage={tmp_path / 'storage'}",
        "training.checkpoint.shared=true",
    )
    sets = [a for change in stored for a in ("--set", change)]
    given = ("amalgamate", "--config", finished.config, *sets)
    over = f"this run is over: {folder / 'result.json'}\n"
    ended = call(*given, "--output", folder, "--resume")
    assert (ended.code, ended.out) == (0, f"{over}copied:  {copy}\n")
    left = {path.name for path in folder.iterdir()} - {"checkpoints"}
    assert {path.name for path in copy.iterdir()} == left
    assert call(*given, "--output", folder, "--resume").out == over
    elsewhere = (*given, "--output", tmp_path / "elsewhere")
    assert call(*elsewhere, "--resume").out == f"this run is over: {copy}\n"
    refusal = call(*elsewhere).refusal
    assert refusal.startswith(f"error: training.checkpoint.storage: {copy} already holds what ")


@pytest.mark.parametrize(
    ("copied", "left", "last"),
    [
        (results.COPIED, results.LEFT, "result.json"),
        (outcome.COPIED, outcome.LEFT, "sweep.html"),
    ],
)
def test_what_says_that_all_is_there_is_copied_at_the_end(
    copied: tuple[str, ...], left: tuple[str, ...], last: str
) -> None:
    assert copied[-1] == last
    assert {*left} - {*copied} <= {"checkpoints", "owner"}
