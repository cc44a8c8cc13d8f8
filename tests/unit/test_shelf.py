"""Checkpoints in a folder: the newest that is whole, and no more than are to be kept."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from limits import no_file_longer_than
from objectstore import SECRET, ObjectStore

from dfka_dist.errors import InputError, NotKept, RunFailed
from dfka_dist.training import fence
from dfka_dist.training.checkpoint import Told, Writing
from dfka_dist.training.shelf import KEY, FolderShelf


def put(
    shelf: FolderShelf, place: Path, step: int, parts: list[str], told: dict[str, Told]
) -> None:
    """Make a checkpoint that needs these lasting files."""
    desk = place / f"desk-{step}"
    writing = Writing(desk / "now", desk / "lasting", rank=0, size=1, told=told)
    (writing.under("thing") / "step.txt").write_text(str(step))
    for part in parts:
        writing.outlasting(part, lambda: {"x": torch.ones(1)})
    writing.close({"step": step, "identity": shelf.identity})
    shelf.add(writing, step)


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


@pytest.mark.parametrize("harm", ["files-0.json", "thing/step.txt", "run.json"])
def test_one_that_is_not_complete_takes_nobodys_place(
    shelf: FolderShelf, root: Path, tmp_path: Path, harm: str
) -> None:
    """Nor does it stay."""
    (root / "checkpoint-000000030" / harm).unlink()
    put(shelf, tmp_path, 40, ["b"], {})
    assert shelf.steps() == [20, 40]


def test_one_without_what_it_needs_beside_it_takes_nobodys_place(
    shelf: FolderShelf, root: Path, tmp_path: Path
) -> None:
    (root / "lasting" / "c.safetensors").unlink()
    put(shelf, tmp_path, 40, ["b"], {})
    assert shelf.steps() == [20, 40]


def test_one_that_was_broken_when_it_was_read_takes_nobodys_place(
    shelf: FolderShelf, root: Path, tmp_path: Path
) -> None:
    """Although all its files are as long as they should be."""
    (root / "checkpoint-000000030" / "thing" / "step.txt").write_text("31")
    newest = shelf.newest()
    assert newest is not None and newest.run["step"] == 20
    put(shelf, tmp_path, 40, ["b"], dict(newest.told))
    assert shelf.steps() == [20, 40]


@pytest.mark.parametrize("harm", ["thing/step.txt", "run.json", "files-0.json"])
def test_a_run_does_not_begin_anew_where_every_checkpoint_is_broken(
    shelf: FolderShelf, root: Path, harm: str
) -> None:
    """The next one would remove what may be mended."""
    for step in shelf.steps():
        (root / f"checkpoint-{step:09}" / harm).write_text("{")
    said = f"no checkpoint in {root} is whole: mend one, or begin anew with --overwrite"
    with pytest.raises(RunFailed, match=said):
        shelf.newest()
    assert shelf.steps() == [20, 30]


@pytest.mark.parametrize("missing", ["run.json", "files-0.json"])
def test_a_run_that_was_killed_as_it_made_its_first_checkpoint_begins(
    shelf: FolderShelf, root: Path, missing: str
) -> None:
    for step in shelf.steps():
        (root / f"checkpoint-{step:09}" / missing).unlink()
    assert shelf.newest() is None


def test_it_tells_whose_checkpoints_they_are(shelf: FolderShelf) -> None:
    told = shelf.told()
    assert told is not None and told["identity"] == {"seed": 3}


ABANDONED = """
import os, signal, sys
from dfka_dist.training.shelf import FolderShelf
shelf = FolderShelf(sys.argv[1], keep=1)
print(shelf.desk(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_of_the_run_had_on_its_way_goes_when_the_run_goes_on(
    shelf: FolderShelf, root: Path, tmp_path: Path
) -> None:
    own, others = (
        subprocess.run(
            [sys.executable, "-c", ABANDONED, str(place)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        ).stdout.strip()
        for place in (root, tmp_path / "another")
    )
    assert Path(own).exists()
    shelf.newest()
    assert (Path(own).exists(), Path(others).exists()) == (False, True)
    shutil.rmtree(others)


def test_it_can_be_sent_elsewhere(shelf: FolderShelf) -> None:
    assert pickle.loads(pickle.dumps(shelf)).steps() == shelf.steps()


def test_it_can_be_cleared(shelf: FolderShelf, root: Path) -> None:
    (root / "other").mkdir()
    shelf.clear()
    shelf.clear()
    assert [place.name for place in root.iterdir()] == ["other"], "which is not ours"


def test_a_password_is_in_no_message() -> None:
    shelf = FolderShelf("s3://key:secret@bucket/runs?region=eu-west-1", keep=1)
    assert str(shelf) == "s3://bucket/runs"


# an object store


@pytest.fixture
def remote(object_store: ObjectStore, tmp_path: Path) -> Iterator[FolderShelf]:
    """With two checkpoints made and kept."""
    shelf, told = FolderShelf(object_store.uri(tmp_path.name), keep=2), dict[str, Told]()
    for step, parts in ((10, ["a"]), (20, ["a", "b"])):
        put(shelf, tmp_path, step, parts, told)
    yield shelf
    object_store.is_unavailable = object_store.is_forbidden = lambda path: False


def test_an_object_store_keeps_them_like_a_disk(remote: FolderShelf, tmp_path: Path) -> None:
    told: dict[str, Told] = dict(remote.newest().told)  # type: ignore[union-attr]
    put(remote, tmp_path, 30, ["b"], told)
    elsewhere = pickle.loads(pickle.dumps(remote))
    newest = elsewhere.newest()
    assert elsewhere.steps() == [20, 30] and newest is not None
    assert newest.run["step"] == 30 and newest.outlasting("b")["x"].tolist() == [1]


def test_what_is_on_no_list_is_not_fetched(
    remote: FolderShelf, object_store: ObjectStore, tmp_path: Path
) -> None:
    object_store.put(f"bucket/{tmp_path.name}/checkpoint-000000020/thing/shard.pt", b"code")
    newest = remote.newest()
    assert newest is not None and newest.run["step"] == 20
    assert sorted(p.name for p in (newest.folder / "thing").iterdir()) == ["step.txt"]


def test_what_was_taken_down_goes_with_the_shelf(remote: FolderShelf) -> None:
    newest = remote.newest()
    assert newest is not None and newest.folder.exists()
    remote.close()
    assert not newest.folder.exists()


def test_a_storage_that_fails_in_the_middle_leaves_what_was_there(
    remote: FolderShelf, object_store: ObjectStore, tmp_path: Path
) -> None:
    told: dict[str, Told] = dict(remote.newest().told)  # type: ignore[union-attr]
    object_store.is_forbidden = lambda path: path.endswith("30/files-0.json")
    with pytest.raises(NotKept, match=r"no checkpoint at step 30: s3://.* cannot be written"):
        put(remote, tmp_path, 30, ["b", "c"], told)
    object_store.is_forbidden = lambda path: False
    newest = remote.newest()
    assert newest is not None and newest.run["step"] == 20
    assert remote.steps() == [10, 20]


def test_a_storage_that_cannot_be_listed_keeps_the_newest_beside_older_ones(
    remote: FolderShelf,
    object_store: ObjectStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fails when all is written, and older checkpoints are looked for."""
    written: list[str] = []

    def fails(path: str) -> bool:
        written.extend([path] if path.endswith("30/files-0.json") else [])
        return bool(written) and path.strip("/") == "bucket"

    object_store.is_forbidden = fails
    put(remote, tmp_path, 30, ["b"], {})
    object_store.is_forbidden = lambda path: False
    assert "older checkpoints stay in s3://" in caplog.text
    assert remote.steps() == [10, 20, 30]


def test_a_storage_that_does_not_answer_is_refused_without_the_password(
    remote: FolderShelf, object_store: ObjectStore
) -> None:
    object_store.is_unavailable = lambda path: True
    with pytest.raises(InputError, match=KEY) as refused:
        remote.steps()
    assert SECRET not in str(refused.value)


def test_one_that_cannot_be_reached_just_now_is_not_passed_over(
    remote: FolderShelf, object_store: ObjectStore
) -> None:
    object_store.is_unavailable = lambda path: path.endswith("20/run.json")
    with pytest.raises(RunFailed, match=r"s3://.* cannot be read: "):
        remote.newest()


def test_a_disk_that_is_full_leaves_what_was_there(shelf: FolderShelf, tmp_path: Path) -> None:
    writing = Writing(tmp_path / "desk", tmp_path / "lasting", rank=0, size=1, told={})
    (writing.under("thing") / "large").write_bytes(bytes(4096))
    what = r"no checkpoint at step 40: .* cannot be written"
    with no_file_longer_than(1024), pytest.raises(NotKept, match=what):
        shelf.add(writing, 40)
    newest = shelf.newest()
    assert newest is not None and newest.run["step"] == 30 and shelf.steps() == [20, 30]


def starts(root: Path) -> tuple[FolderShelf, FolderShelf]:
    """An earlier start of a run and a later one, as their workers have them."""
    made = []
    for _ in range(2):
        shelf = FolderShelf(str(root), keep=1)
        shelf.begin(anew=False)
        made.append(pickle.loads(pickle.dumps(shelf)))
    return made[0], made[1]


def test_an_earlier_start_writes_and_removes_nothing_any_more(root: Path, tmp_path: Path) -> None:
    earlier, later = starts(root)
    put(later, tmp_path, 20, ["a"], {})
    with pytest.raises(RunFailed, match=f"another start of this run writes to {root}"):
        put(earlier, tmp_path, 10, ["a"], {})
    with pytest.raises(RunFailed, match="another start"):
        earlier.refuse_another_start()
    assert later.steps() == [20] and later.newest() is not None
    later.refuse_another_start()


def test_an_earlier_group_of_the_same_start_writes_and_removes_nothing_any_more(
    root: Path, tmp_path: Path
) -> None:
    driver = FolderShelf(str(root), keep=1)
    driver.begin(anew=False)
    earlier, later = (pickle.loads(pickle.dumps(driver)) for _ in range(2))
    assert earlier.newest() is None and later.newest() is None  # they meet
    put(later, tmp_path, 20, ["a"], {})
    with pytest.raises(RunFailed, match=f"another start of this run writes to {root}"):
        put(earlier, tmp_path, 10, ["a"], {})
    assert later.steps() == [20]
    driver.refuse_another_start()


def test_workers_that_do_not_find_what_the_start_has_left_there_begin_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node where a shared folder is not mounted."""
    monkeypatch.setattr(fence, "SETTLING", 0.0)
    shelf = FolderShelf(str(root), keep=1)
    shelf.begin(anew=False)
    (root / "owner").unlink()
    with pytest.raises(RunFailed, match=f"^{root} is not what the run was started with as it is"):
        shelf.newest()


def test_workers_meet_although_a_disk_is_full(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = FolderShelf(str(root), keep=1)
    driver.begin(anew=False)
    workers = pickle.loads(pickle.dumps(driver))
    with no_file_longer_than(4):
        assert workers.newest() is None
    assert "cannot be written" in caplog.text
    workers.refuse_another_start()


@pytest.mark.parametrize("name", ["files-0.json", "run.json"])
def test_a_checkpoint_on_a_disk_that_cannot_be_read_just_now_is_not_passed_over(
    shelf: FolderShelf, root: Path, name: str
) -> None:
    place = root / f"checkpoint-{shelf.steps()[-1]:09}" / name
    place.unlink()
    place.symlink_to("/proc/self/mem")  # which opens, and then fails
    with pytest.raises(RunFailed, match=f"^{root} cannot be read: .*Input/output error"):
        shelf.newest()


def test_a_start_whose_mark_is_gone_goes_on(root: Path, tmp_path: Path) -> None:
    """Nobody else has one there either."""
    shelf = FolderShelf(str(root), keep=1)
    shelf.begin(anew=True)
    shutil.rmtree(root)
    put(shelf, tmp_path, 10, [], {})
    assert shelf.steps() == [10]


def test_a_start_that_begins_anew_clears_what_was_there_and_is_the_newest(
    shelf: FolderShelf, root: Path, tmp_path: Path
) -> None:
    anew = FolderShelf(str(root), keep=2)
    anew.begin(anew=True)
    assert anew.steps() == [] and [p.name for p in root.iterdir()] == ["owner"]
