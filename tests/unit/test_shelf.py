"""Checkpoints in a folder: the newest that is whole, and no more than are to be kept."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from dfka_dist.training.checkpoint import Told, Writing
from dfka_dist.training.shelf import FolderShelf


def put(
    shelf: FolderShelf, place: Path, step: int, parts: list[str], told: dict[str, Told]
) -> None:
    """Make a checkpoint that needs these lasting files."""
    writing = Writing(place / f"desk-{step}", shelf.lasting(), rank=0, size=1, told=told)
    (writing.under("thing") / "step.txt").write_text(str(step))
    for part in parts:
        writing.outlasting(part, lambda: {"x": torch.ones(1)})
    writing.close({"step": step, "identity": shelf.identity})
    shelf.add(writing.folder, step)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def shelf(root: Path, tmp_path: Path) -> FolderShelf:
    """With three checkpoints made and two kept."""
    shelf, told = FolderShelf(str(root), keep=2, identity={"seed": 3}), dict[str, Told]()
    for step, parts in ((10, ["a"]), (20, ["a", "b"]), (30, ["b", "c"])):
        put(shelf, tmp_path, step, parts, told)
    return shelf


def test_there_is_none_at_first(root: Path) -> None:
    shelf = FolderShelf(str(root), keep=2)
    assert (shelf.newest(), shelf.told(), shelf.steps()) == (None, None, [])


def test_the_newest_are_kept_with_what_they_need(shelf: FolderShelf, root: Path) -> None:
    assert shelf.steps() == [20, 30]
    assert sorted(p.stem for p in (root / "lasting").iterdir()) == ["a", "b", "c"]


def test_what_none_needs_any_more_goes(shelf: FolderShelf, root: Path, tmp_path: Path) -> None:
    told: dict[str, Told] = dict(shelf.newest().told)  # type: ignore[union-attr]
    put(shelf, tmp_path, 40, ["c"], told)
    assert sorted(p.stem for p in (root / "lasting").iterdir()) == ["b", "c"]


def test_the_newest_is_read(shelf: FolderShelf) -> None:
    newest = shelf.newest()
    assert newest is not None and newest.run["step"] == 30
    assert newest.outlasting("c")["x"].tolist() == [1]


@pytest.mark.parametrize("broken", ["thing/step.txt", "files-0.json", "run.json"])
def test_one_that_is_broken_is_passed_over_with_a_warning(
    shelf: FolderShelf, root: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "checkpoint-000000030" / broken).write_text("{")
    newest = shelf.newest()
    assert newest is not None and newest.run["step"] == 20
    assert "passing over a checkpoint: checkpoint-000000030" in caplog.text


def test_one_that_was_passed_over_takes_nobodys_place(
    shelf: FolderShelf, root: Path, tmp_path: Path
) -> None:
    (root / "checkpoint-000000030" / "files-0.json").write_text("{")
    newest = shelf.newest()
    assert newest is not None
    put(shelf, tmp_path, 25, ["b"], dict(newest.told))
    assert shelf.steps() == [20, 25]


def test_it_tells_whose_checkpoints_they_are(shelf: FolderShelf) -> None:
    told = shelf.told()
    assert told is not None and told["identity"] == {"seed": 3}


def test_it_can_be_sent_elsewhere(shelf: FolderShelf) -> None:
    assert pickle.loads(pickle.dumps(shelf)).steps() == shelf.steps()


def test_it_can_be_cleared(shelf: FolderShelf, root: Path) -> None:
    shelf.clear()
    shelf.clear()
    assert not root.exists()


def test_a_password_is_in_no_message() -> None:
    shelf = FolderShelf("s3://key:secret@bucket/runs?region=eu-west-1", keep=1)
    assert str(shelf) == "s3://bucket/runs?region=eu-west-1"
