"""Where a finished output folder is copied to, and what is said when it cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from objectstore import SECRET, ObjectStore

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.copies import Copy, copy_of
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.places import Place

NAMES = ("network", "notes.txt", "missing", "result.json")
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a program that is done."""
    for name in ("network/deep/weights", "notes.txt", "result.json", "thesis.tex"):
        path = tmp_path / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "output"


@pytest.fixture
def make(
    make_config: MakeConfig, make_teacher: Callable[..., TeacherSpec], folder: Path
) -> Callable[..., Copy]:
    """The copy of a run with such a storage."""

    def make(**storage: Any) -> Copy:
        config = make_config([make_teacher()], training={"checkpoint": storage})
        return copy_of(config, config.run.name, folder, NAMES)

    return make


@pytest.fixture(params=["disk", "objects"])
def storage(
    request: pytest.FixtureRequest, object_store: ObjectStore, tmp_path: Path
) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "storage")
        return
    yield object_store.uri(f"copies-{tmp_path.name}")
    object_store.is_forbidden = lambda path: False


@pytest.fixture
def copy(storage: str, folder: Path) -> Copy:
    return Copy(Place(storage, "key"), folder, NAMES)


def held(storage: str) -> dict[str, bytes]:
    """All files of a place."""
    place, found = Place(storage, "key"), dict[str, bytes]()
    for name in ("network/deep/weights", "notes.txt", "missing", "result.json", "thesis.tex"):
        try:
            with place.open(name) as file:
                found[name] = file.read()
        except FileNotFoundError:
            continue
    return found


def test_what_a_program_leaves_is_copied_and_nothing_else(copy: Copy, storage: str) -> None:
    assert not copy.is_whole()
    assert copy.make() == [f"copied:  {copy}"]
    assert copy.is_whole()
    own = ("network/deep/weights", "notes.txt", "result.json")
    assert held(storage) == {name: name.encode() for name in own}


def test_a_copy_that_is_there_is_refused_until_it_is_cleared(copy: Copy) -> None:
    copy.refuse_existing()
    copy.make()
    with pytest.raises(InputError, match=r"^key: .* already holds what an earlier run has left"):
        copy.refuse_existing()
    copy.clear()
    copy.clear()
    copy.refuse_existing()


def test_a_part_is_copied_before_all_is_there_and_brought_back(
    copy: Copy, folder: Path, storage: str
) -> None:
    assert not copy.fetch("network")
    copy.add("network", "missing")
    assert not copy.is_whole() and copy.text("notes.txt") is None
    shutil.rmtree(folder / "network")
    assert copy.fetch("network")
    assert (folder / "network" / "deep" / "weights").read_text() == "network/deep/weights"
    assert {place.name for place in folder.iterdir()} == {*NAMES, "thesis.tex"} - {"missing"}
    copy.drop("network")
    copy.drop("network")
    assert held(storage) == {}


def test_a_part_that_cannot_be_copied_says_so(object_store: ObjectStore, folder: Path) -> None:
    object_store.is_forbidden = lambda path: path.endswith("notes.txt")
    with pytest.raises(RunFailed, match=r"^s3://bucket/part cannot be written: "):
        Copy(Place(object_store.uri("part"), "key"), folder, NAMES).add("notes.txt")
    object_store.is_forbidden = lambda path: False


def test_a_file_that_cannot_be_copied_leaves_no_copy_that_is_whole(
    object_store: ObjectStore, folder: Path
) -> None:
    object_store.is_forbidden = lambda path: path.endswith("notes.txt")
    copy = Copy(Place(object_store.uri("full"), "key"), folder, NAMES)
    with pytest.raises(RunFailed) as caught:
        copy.make()
    object_store.is_forbidden = lambda path: False
    assert str(caught.value).startswith(
        f"the result is in {folder} alone: s3://bucket/full cannot be written: "
    )
    assert SECRET not in str(caught.value)
    assert not copy.is_whole()


def test_without_a_storage_that_others_reach_nothing_is_copied(
    make: Callable[..., Copy], folder: Path, tmp_path: Path
) -> None:
    around = {"storage": str(tmp_path), "shared": True}
    for storage in ({}, {"storage": str(tmp_path / "own")}, around):
        copy = make(**storage)
        copy.refuse_existing()
        copy.clear()
        assert (copy.make(), copy.is_whole()) == ([], False)
    assert [place.name for place in tmp_path.iterdir()] == [folder.name]


def test_a_copy_lies_with_the_checkpoints_of_the_run(
    make: Callable[..., Copy], tmp_path: Path
) -> None:
    shared = make(storage=str(tmp_path / "disk"), shared=True)
    assert str(shared) == str(tmp_path / "disk" / "test" / "result")
    assert str(make(storage="s3://bucket/runs?region=x")) == "s3://bucket/runs/test/result"
