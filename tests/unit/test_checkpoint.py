"""Files of a checkpoint: whole, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from limits import no_file_longer_than

from dfka_dist.training.checkpoint import (
    BrokenCheckpoint,
    Reading,
    Writing,
    refuse_code,
    write_state,
)
from dfka_dist.training.lists import Lists

Harm = Callable[[Path], None]


def written(place: Path, told: dict[str, dict[str, object]] | None = None) -> Path:
    """A checkpoint of one worker, with one thing of its own and one that lasts."""
    folder = place / "checkpoint"
    writing = Writing(folder, place / "lasting", rank=0, size=1, told=told if told else {})
    (writing.under("thing") / "a.txt").write_text("something")
    writing.outlasting("part", lambda: {"x": torch.arange(3.0)})
    writing.close({"step": 7})
    return folder


def opened(place: Path) -> Reading:
    return Reading.opened(place / "checkpoint", place / "lasting")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path)
    reading = opened(tmp_path)
    assert (reading.run["step"], reading.holds("thing"), reading.holds("other")) == (7, True, False)
    assert reading.outlasting("part")["x"].tolist() == [0, 1, 2]


def shorter(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-1])


def changed(place: Path) -> None:
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)


@pytest.mark.parametrize("harm", [shorter, changed, Path.unlink])
@pytest.mark.parametrize(
    "name",
    ["checkpoint/thing/a.txt", "checkpoint/run.json", "lasting/part.safetensors"],
)
def test_a_file_that_is_not_what_was_written_is_seen(tmp_path: Path, harm: Harm, name: str) -> None:
    written(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(BrokenCheckpoint):
        opened(tmp_path)


def test_a_checkpoint_that_one_of_two_workers_did_not_finish_is_seen(tmp_path: Path) -> None:
    Writing(tmp_path / "checkpoint", tmp_path / "lasting", rank=0, size=2, told={}).under("thing")
    writing = Writing(tmp_path / "checkpoint", tmp_path / "lasting", rank=0, size=2, told={})
    writing.close({"step": 7})
    with pytest.raises(BrokenCheckpoint, match="files-1"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path)
    listed = json.loads((folder / "files-0.json").read_text())
    listed["files"][name] = {"bytes": 1, "sha256": ""}
    (folder / "files-0.json").write_text(json.dumps(listed))
    with pytest.raises(BrokenCheckpoint, match="lies outside"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["thing/engine/mp_rank_00_model_states.pt", "more"])
def test_a_file_that_is_on_no_list_is_refused(tmp_path: Path, name: str) -> None:
    stranger = written(tmp_path) / name
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.touch()
    with pytest.raises(BrokenCheckpoint, match=f"{name} is on no list"):
        opened(tmp_path)


def test_a_checkpoint_that_nobody_wrote_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "run.json").write_text('{"workers": 0}')
    with pytest.raises(BrokenCheckpoint, match="0 workers wrote it"):
        opened(tmp_path)


def test_a_state_that_does_not_fit_on_the_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    what = r"state: .*File too large"
    with no_file_longer_than(1024), pytest.raises(OSError, match=what):
        write_state(tmp_path / "state", {"x": torch.ones(1024)})


# several readers


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A checkpoint of two workers, each with files that the other does not read."""
    for rank in (0, 1):
        writing = Writing(tmp_path / f"desk-{rank}", tmp_path / "lasting", rank, 2, {})
        place = writing.under("thing") / f"{rank}.txt"
        place.write_text("something")
        place.with_name(f"all-{rank}.txt").write_text("something")
        writing.claim(place)
        writing.outlasting(f"part-{rank}", lambda: {"x": torch.ones(1)}, claimed=True)
        writing.outlasting("part", lambda: {"x": torch.ones(1)})
        writing.close({})
        shutil.copytree(writing.folder, tmp_path / "checkpoint", dirs_exist_ok=True)
    return tmp_path


def test_a_rank_needs_its_own_files_and_what_all_read(shared: Path) -> None:
    lists = Lists.read(lambda name: (shared / "checkpoint" / name).read_bytes())
    needed = lists.needed(1, 2)
    assert set(needed.files) == {"run.json", "thing/1.txt", "thing/all-0.txt", "thing/all-1.txt"}
    assert set(needed.lasting) == {"part-1.safetensors", "part.safetensors"}


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_needs_everything(shared: Path, size: int) -> None:
    lists = Lists.read(lambda name: (shared / "checkpoint" / name).read_bytes())
    assert lists.needed(0, size) == lists.whole


def test_a_rank_looks_at_no_file_that_only_another_reads(shared: Path) -> None:
    (shared / "lasting" / "part-0.safetensors").unlink()
    reading = Reading.opened(shared / "checkpoint", shared / "lasting", rank=1, size=2)
    assert set(reading.told) == {"part-1.safetensors", "part.safetensors"}
    with pytest.raises(BrokenCheckpoint, match="part-0"):
        Reading.opened(shared / "checkpoint", shared / "lasting", rank=0, size=2)


def test_what_outlasts_a_checkpoint_is_written_once(tmp_path: Path) -> None:
    told: dict[str, dict[str, object]] = {"part.safetensors": {"bytes": 1, "sha256": "known"}}
    written(tmp_path, told)
    assert not (tmp_path / "lasting" / "part.safetensors").exists()


class Code:
    """A pickle that would call something."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("called",)


def test_a_pickle_that_names_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": torch.ones(1), "code": Code()}, tmp_path / "shard.pt")
    with pytest.raises(BrokenCheckpoint, match=r"shard\.pt is not what DeepSpeed writes"):
        refuse_code(tmp_path, [])
    assert capsys.readouterr().out == ""


def test_a_pickle_without_a_container_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard.pt").write_bytes(pickle.dumps(Code()))
    with pytest.raises(BrokenCheckpoint):
        refuse_code(tmp_path, [])


def test_tensors_and_plain_values_are_no_code(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1), "n": 3, "names": ["a"]}, tmp_path / "shard.pt")
    refuse_code(tmp_path, [])
