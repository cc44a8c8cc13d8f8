"""Archives of synthesized images: written in parts, read again as a shuffled stream."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectstore import SECRET, ObjectStore
from pyarrow import parquet
from torch import Tensor

from dfka_dist.archive import (
    Archive,
    ArchivedBatch,
    ArchivedTeacher,
    ArchiveWriter,
    Contents,
    keep_only,
    refuse_another_run,
    refuse_existing,
    refuse_unwritable,
)
from dfka_dist.archive.order import windows
from dfka_dist.config import TeacherSpec
from dfka_dist.errors import InputError, RunFailed

SHAPE = (2, 3, 4)
FIRST = ArchivedTeacher(name="first", task="multi_label", labels=["a", "b", "c"], sha256="1f")
SECOND = ArchivedTeacher(name="second-er", task="multi_label", labels=["d"], sha256="2f")
LABELS = ["d", "a", "b"]
KEY = "training.from_archive"


def contents(**changes: Any) -> Contents:
    about = {"run": "test", "teachers": [FIRST, SECOND], "labels": LABELS, "shape": SHAPE}
    return Contents(**(about | changes))


def writer(place: object, **changes: Any) -> ArchiveWriter:
    about = {key: changes.pop(key) for key in Contents.model_fields.keys() & changes.keys()}
    return ArchiveWriter(str(place), contents(**about), **changes)


def made(step: int, count: int, shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    """What a step adds; the first logit says which row it is."""
    random = torch.Generator().manual_seed(step)
    first = torch.randn(count, 3, generator=random)
    first[:, 0] = 1000 * step + torch.arange(count)
    return {
        "step": step,
        "images": torch.rand(count, *shape, generator=random),
        "asked_for": (torch.rand(count, 3, generator=random) < 0.5).float(),
        "homes": torch.arange(count) % 3 - 1,
        "logits": {"first": first, "second-er": torch.randn(count, 1, generator=random)},
    }


def filled(place: object, counts: Sequence[int], rank: int = 0, **changes: Any) -> None:
    with writer(place, rank=rank, **changes) as writing:
        for step, count in enumerate(counts):
            writing.add(first_column=rank * 100, **made(100 * rank + step, count))


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def numbers(batch: ArchivedBatch) -> list[int]:
    return batch.logits["first"][:, 0].int().tolist()


def taken(archive: Archive, count: int, **how: Any) -> list[ArchivedBatch]:
    return list(itertools.islice(archive.batches(**({"size": 6, "seed": 0} | how)), count))


def refusal(act: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """41 rows in 10 row groups, by two workers."""
    folder = tmp_path_factory.mktemp("archive")
    filled(folder, [10, 7], rank=0, rows_per_shard=5)
    filled(folder, [24], rank=1, rows_per_shard=4)
    return Archive.open(str(folder), KEY)


# what is written


def test_what_is_read_is_what_a_memory_of_sixteen_bits_keeps(tmp_path: Path) -> None:
    given = made(3, 20)
    with writer(tmp_path) as writing:
        writing.add(first_column=0, **given)
    (batch,) = taken(Archive.open(str(tmp_path), KEY), 1, size=20)
    order = [number - 3000 for number in numbers(batch)]
    assert sorted(order) == list(range(20))
    assert batch.images.dtype == torch.float32
    assert batch.images.equal(given["images"].half().float()[order])
    assert batch.homes.equal(given["homes"][order])
    for name, logits in batch.logits.items():
        assert logits.equal(given["logits"][name][order])


def test_every_row_says_where_it_comes_from_and_what_it_was_asked_for(tmp_path: Path) -> None:
    rows = made(3, 5) | {"asked_for": torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])}
    rows = {k: v[:4] if isinstance(v, Tensor) else v for k, v in rows.items()}
    rows["logits"] = {name: logits[:4] for name, logits in rows["logits"].items()}
    with writer(tmp_path) as writing:
        writing.add(first_column=8, **rows)
    table = parquet.read_table(tmp_path / "part-00000-00000.parquet")
    assert table["step"].to_pylist() == [3] * 4
    assert table["column"].to_pylist() == [8, 9, 10, 11]
    assert table["home"].to_pylist() == [-1, 0, 1, -1]
    assert table["asked"].to_pylist() == [["d", "b"], [], ["a"], ["d", "a", "b"]]


def test_metadata_tell_what_a_shard_holds(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    schema = parquet.read_schema(tmp_path / "part-00000-00000.parquet")
    about = json.loads(schema.metadata[b"dfka_dist"])
    assert about == {
        "format": 1,
        "run": "test",
        "teachers": [FIRST.model_dump(), SECOND.model_dump()],
        "labels": LABELS,
        "shape": list(SHAPE),
    }
    assert schema.field("image").type == pyarrow.binary(2 * 2 * 3 * 4)
    assert schema.field("logits.first").type.list_size == 3


def test_an_archive_knows_what_it_holds(archive: Archive) -> None:
    assert (archive.run, archive.labels, archive.shape) == ("test", LABELS, SHAPE)
    assert archive.teachers == [FIRST, SECOND]
    assert len(archive) == 41


def test_shards_are_cut_at_their_number_of_rows(tmp_path: Path) -> None:
    filled(tmp_path, [10, 7], rank=2, rows_per_shard=8)
    assert shards(tmp_path) == [f"part-00002-0000{number}.parquet" for number in range(3)]
    rows = [parquet.read_metadata(tmp_path / name).num_rows for name in shards(tmp_path)]
    assert rows == [8, 8, 1]


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6), most=st.integers(1, 12))
def test_shards_hold_every_row_in_order_whatever_is_added(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], most: int
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    filled(folder, counts, rows_per_shard=most)
    tables = [parquet.read_table(folder / name) for name in shards(folder)]
    assert all(table.num_rows == most for table in tables[:-1])
    rows = [row for table in tables for row in table.select(["step", "column"]).to_pylist()]
    assert [(row["step"], row["column"]) for row in rows] == [
        (step, column) for step, count in enumerate(counts) for column in range(count)
    ]


def test_row_groups_are_filled_over_several_steps(tmp_path: Path) -> None:
    filled(tmp_path, [400] * 6)
    footer = parquet.read_metadata(tmp_path / "part-00000-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [1024, 1024, 352]


def test_row_groups_of_large_images_hold_sixteen_mebibytes(tmp_path: Path) -> None:
    shape = (1, 1024, 1024)
    with writer(tmp_path, shape=shape) as writing:
        writing.add(first_column=0, **made(0, 9, shape))
    footer = parquet.read_metadata(tmp_path / "part-00000-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [7, 2]


def test_a_shard_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    with writer(tmp_path, rows_per_shard=1500) as writing:
        writing.add(first_column=0, **made(0, 1100))
        assert shards(tmp_path) == ["part-00000-00000.parquet.partial"]
        refuse_existing(str(tmp_path), KEY)
    assert shards(tmp_path) == ["part-00000-00000.parquet"]


def test_what_was_added_before_a_failure_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writer(tmp_path) as writing:
        writing.add(first_column=0, **made(0, 5))
        raise KeyError
    assert len(Archive.open(str(tmp_path), KEY)) == 5


def test_a_writer_that_was_given_nothing_leaves_no_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "new" / "folder"):
        pass
    assert shards(tmp_path / "new" / "folder") == []


def test_tensors_may_be_changed_after_they_were_added(tmp_path: Path) -> None:
    given = made(0, 4)
    with writer(tmp_path) as writing:
        writing.add(first_column=0, **given)
        given["logits"]["first"].zero_()
    (batch,) = taken(Archive.open(str(tmp_path), KEY), 1, size=4)
    assert sorted(numbers(batch)) == [0, 1, 2, 3]


def test_images_in_any_memory_format_are_kept_as_they_are(tmp_path: Path) -> None:
    given = made(0, 4)
    images = given["images"].to(memory_format=torch.channels_last)
    with writer(tmp_path) as writing:
        writing.add(first_column=0, **(given | {"images": images.requires_grad_()}))
    (batch,) = taken(Archive.open(str(tmp_path), KEY), 1, size=4)
    assert batch.images.equal(given["images"].half().float()[numbers(batch)])


# where it may be written


def test_a_place_with_an_archive_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    error = refusal(lambda: refuse_existing(str(tmp_path), KEY))
    assert (error.key, error.remedy) == (KEY, "another place")
    assert "already holds an archive" in error.what


def test_a_place_that_is_not_there_is_left_as_it_is(tmp_path: Path) -> None:
    refuse_existing(str(tmp_path / "new"), KEY)
    assert shards(tmp_path) == []


def test_a_second_writer_of_the_same_worker_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    assert refusal(lambda: writer(tmp_path)).key == "training.archive"


def kept(place: Path, counts: Sequence[int], lost: int = 200, **changes: Any) -> None:
    keep_only(str(place), KEY, contents(**changes), counts, lost=lost)


def test_what_a_run_wrote_after_its_checkpoint_is_removed(tmp_path: Path) -> None:
    filled(tmp_path, [2], rank=0)
    filled(tmp_path, [3], rank=1)
    kept(tmp_path, [0, 1])
    assert shards(tmp_path) == ["part-00001-00000.parquet"]
    kept(tmp_path, [])
    assert shards(tmp_path) == []


@pytest.mark.parametrize("change", [{"run": "another"}, {"teachers": [FIRST]}, {"labels": ["d"]}])
def test_what_is_of_another_run_is_refused_and_stays(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    filled(tmp_path, [2])
    said = refusal(lambda: kept(tmp_path, [], **change)).what
    assert "already holds an archive, of the run test" in said
    assert ("with other teachers, labels or images" in said) == ("run" not in change)
    assert len(Archive.open(str(tmp_path), KEY)) == 2


def test_only_the_run_that_wrote_it_goes_on_with_an_archive(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    refuse_another_run(str(tmp_path), KEY, "test")
    error = refusal(lambda: refuse_another_run(str(tmp_path), KEY, "another"))
    assert error.what.endswith("already holds an archive, of the run test")


def test_what_needs_a_checkpoint_that_is_not_there_is_refused_and_stays(tmp_path: Path) -> None:
    filled(tmp_path, [2, 2, 2])
    error = refusal(lambda: kept(tmp_path, [], lost=1))
    assert "holds step 2 of this run, of which there is no checkpoint" in error.what
    assert len(Archive.open(str(tmp_path), KEY)) == 6
    kept(tmp_path, [], lost=2)


def test_a_shard_that_a_checkpoint_knows_of_and_is_gone_is_named(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    error = refusal(lambda: kept(tmp_path, [2]))
    assert "lacks part-00000-00001.parquet" in error.what
    assert shards(tmp_path) == ["part-00000-00000.parquet"]


def test_a_byte_of_a_row_that_is_another_is_refused_or_means_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "good", [40])
    good = (tmp_path / "good" / "part-00000-00000.parquet").read_bytes()
    footer = int.from_bytes(good[-8:-4], "little") + 8
    (before,) = taken(Archive.open(str(tmp_path / "good"), KEY), 1, size=40)
    bad = tmp_path / "part-00000-00000.parquet"
    refused = 0
    places = range(4, len(good) - footer, 37)
    for place in places:
        bad.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            (after,) = taken(Archive.open(str(tmp_path), KEY), 1, size=40)
        except InputError as error:
            refused += "part-00000-00000.parquet cannot be read" in error.what
        else:
            assert after.images.equal(before.images) and after.homes.equal(before.homes)
            assert all(after.logits[name].equal(said) for name, said in before.logits.items())
    assert refused > len(places) / 2


def test_a_worker_may_begin_after_others_have_written(tmp_path: Path) -> None:
    filled(tmp_path, [2], rank=1)
    filled(tmp_path, [3], rank=0)
    assert len(Archive.open(str(tmp_path), KEY)) == 5


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "part-00000-00000.parquet.partial").write_bytes(b"half")
    filled(tmp_path, [2])
    assert shards(tmp_path) == ["part-00000-00000.parquet"]


@pytest.mark.parametrize("act", [writer, lambda place: refuse_existing(str(place), KEY)])
def test_a_file_in_place_of_the_folder_is_refused(
    tmp_path: Path, act: Callable[[Path], object]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert str(tmp_path / "file") in refusal(lambda: act(tmp_path / "file")).what


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    error = refusal(lambda: writer(tmp_path / "file" / "inside"))
    assert error.key == "training.archive"


def test_a_file_system_that_nobody_knows_is_refused() -> None:
    assert refusal(lambda: refuse_existing("nowhere://x/y", KEY)).key == KEY


def test_a_folder_that_goes_away_fails_the_run_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    with writer(folder) as writing:
        folder.rmdir()
        with pytest.raises(RunFailed, match="cannot be written any more") as caught:
            writing.add(first_column=0, **made(0, 1024))
    assert "\n" not in str(caught.value)


# what is read


def test_the_same_seed_gives_the_same_batches(archive: Archive) -> None:
    for batch, again in zip(taken(archive, 20), taken(archive, 20), strict=True):
        assert batch.images.equal(again.images) and numbers(batch) == numbers(again)


def test_another_seed_gives_another_order(archive: Archive) -> None:
    assert list(map(numbers, taken(archive, 6))) != list(map(numbers, taken(archive, 6, seed=1)))


def test_every_row_comes_once_an_epoch_and_each_epoch_has_another_order(archive: Archive) -> None:
    (batch,) = taken(archive, 1, size=3 * 41)
    rows = numbers(batch)
    epochs = [rows[:41], rows[41:82], rows[82:]]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 41
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_rows_of_a_batch_stay_together(archive: Archive) -> None:
    """Whatever is mixed, an image keeps its answers."""
    (batch,) = taken(archive, 1, size=41)
    images = {
        1000 * step + i: image
        for step, count in ((0, 10), (1, 7), (100, 24))
        for i, image in enumerate(made(step, count)["images"].half().float())
    }
    for number, image in zip(numbers(batch), batch.images, strict=True):
        assert image.equal(images[number])


@pytest.mark.parametrize("buffer", [1, 600, 2**20])
@pytest.mark.parametrize("shares", [2, 3])
def test_the_shares_of_a_batch_are_the_batch_of_one_worker(
    archive: Archive, shares: int, buffer: int
) -> None:
    whole = taken(archive, 20, buffer=buffer)
    parts = [taken(archive, 20, shares=shares, share=i, buffer=buffer) for i in range(shares)]
    for batch, *split in zip(whole, *parts, strict=True):
        assert batch.images.equal(torch.cat([part.images for part in split]))
        assert batch.homes.equal(torch.cat([part.homes for part in split]))
        assert numbers(batch) == [number for part in split for number in numbers(part)]


def test_rows_of_several_row_groups_are_mixed(archive: Archive) -> None:
    steps = {number // 1000 for number in numbers(taken(archive, 1, size=12)[0])}
    assert steps == {0, 1, 100}


def test_rows_that_are_set_apart_are_of_the_whole_length_and_nowhere_else(tmp_path: Path) -> None:
    filled(tmp_path, [4] * 16, rows_per_shard=4)
    archive = Archive.open(str(tmp_path), KEY)
    learned, apart = archive.set_apart(15)
    assert (len(learned), len(apart)) == (48, 16)
    own = {number // 1000 for number in numbers(next(apart.batches(size=16, seed=0)))}
    assert own == {2, 6, 10, 14}
    others = {number // 1000 for number in numbers(next(learned.batches(size=48, seed=0)))}
    assert others == {*range(16)} - own


def test_a_small_archive_has_nothing_to_set_apart(archive: Archive) -> None:
    assert archive.set_apart(20) == (archive, archive)


def test_memory_is_bounded_by_the_buffer(tmp_path: Path) -> None:
    shape, buffer = (1, 64, 64), 2**22
    with writer(tmp_path, shape=shape, rows_per_shard=64) as writing:
        for step in range(8):
            writing.add(first_column=0, **made(step, 256, shape))
    archive = Archive.open(str(tmp_path), KEY)  # 16 MiB in row groups of half a MiB
    tracemalloc.start()
    try:
        for batch in itertools.islice(archive.batches(size=8, seed=0, buffer=buffer), 600):
            assert len(batch.images) == 8
        assert tracemalloc.get_traced_memory()[1] < buffer + 2**21
    finally:
        tracemalloc.stop()


Sizes = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@settings(deadline=None)
@given(Sizes, st.integers(0, 99), st.integers(1, 60))
def test_no_window_is_larger_than_the_buffer_unless_it_is_one_group(
    sizes: list[int], seed: int, most: int
) -> None:
    for window in itertools.islice(windows(sizes, seed=seed, most=most), 30):
        assert len(window.order) <= most or len(window.groups) == 1


@settings(deadline=None)
@given(Sizes, st.integers(0, 99), st.integers(1, 60))
def test_windows_give_every_row_once_an_epoch(sizes: list[int], seed: int, most: int) -> None:
    endless = windows(sizes, seed=seed, most=most)
    for _ in range(3):
        groups: list[int] = []
        while len(groups) < len(sizes):
            window = next(endless)
            groups += window.groups
            assert sorted(window.order) == list(range(sum(sizes[g] for g in window.groups)))
        assert sorted(groups) == list(range(len(sizes)))


# archives that are none


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    error = refusal(lambda: Archive.open(str(tmp_path / "none"), KEY))
    assert (error.key, error.what) == (KEY, f"{tmp_path / 'none'} does not exist")


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    assert "no Parquet file" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


def test_an_archive_without_a_row_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    path = tmp_path / "part-00000-00000.parquet"
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    assert "no image" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


def test_a_file_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [2])
    place = tmp_path / "part-00000-00000.parquet"
    assert refusal(lambda: Archive.open(str(place), KEY)).key == KEY


def test_parquet_of_somebody_else_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"image": [b""]}), tmp_path / "x.parquet")
    assert "x.parquet has no dfka_dist" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_a_truncated_shard_is_refused_by_its_name(tmp_path: Path, kept: int) -> None:
    filled(tmp_path, [5, 5], rows_per_shard=5)
    path = tmp_path / "part-00000-00001.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    error = refusal(lambda: Archive.open(str(tmp_path), KEY))
    assert "part-00000-00001.parquet is truncated" in error.what


def test_shards_of_two_runs_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, [5])
    filled(tmp_path, [5], rank=1, run="other")
    assert "two archives" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


def with_metadata(folder: Path, **changes: Any) -> None:
    """Write a shard again that says something else of itself."""
    path = folder / "part-00000-00000.parquet"
    table = parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"dfka_dist"]) | changes
    parquet.write_table(table.replace_schema_metadata({"dfka_dist": json.dumps(about)}), path)


def test_an_archive_of_another_format_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [5])
    with_metadata(tmp_path, format=2)
    assert "another format" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


def test_a_shard_that_holds_other_columns_than_it_says_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [5])
    with_metadata(tmp_path, shape=[1, 2, 2])
    assert "other columns" in refusal(lambda: Archive.open(str(tmp_path), KEY)).what


def test_a_shard_that_goes_away_while_it_is_read_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [5])
    archive = Archive.open(str(tmp_path), KEY)
    (tmp_path / "part-00000-00000.parquet").unlink()
    error = refusal(lambda: taken(archive, 1))
    assert error.key == KEY and "part-00000-00000.parquet cannot be read" in error.what


def test_a_place_where_nothing_can_be_written_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(lambda: refuse_unwritable(str(tmp_path / "file" / "archive"), KEY))
    assert error.key == KEY and "cannot be written" in error.what


# whether an archive fits a run


@pytest.fixture
def specs(make_teacher: Callable[..., TeacherSpec]) -> list[TeacherSpec]:
    return [make_teacher("first", FIRST.labels), make_teacher("second-er", SECOND.labels)]


def test_an_archive_fits_the_teachers_that_made_it(
    archive: Archive, specs: list[TeacherSpec]
) -> None:
    archive.check(specs, ["c", "d"], KEY)
    assert [spec.name for spec in specs] == [teacher.name for teacher in archive.teachers]


@pytest.mark.parametrize("kept", [[0], [1, 0]])
def test_an_archive_fits_some_of_its_teachers_in_any_order(
    archive: Archive, specs: list[TeacherSpec], kept: list[int]
) -> None:
    own = [specs[i] for i in kept]
    archive.check(own, ["a"], KEY)
    # It looked: what does not fit is refused of them, too.
    assert "knows e" in refusal(lambda: archive.check(own, ["a", "e"], KEY)).what


def test_a_teacher_that_is_not_in_it_is_refused(archive: Archive, specs: list[TeacherSpec]) -> None:
    other = specs[1].model_copy(update={"name": "third"})
    error = refusal(lambda: archive.check([specs[0], other], ["a"], KEY))
    assert error.key == KEY and "holds answers of first, second-er, not of third" in error.what


def test_answers_of_other_weights_are_refused(archive: Archive, specs: list[TeacherSpec]) -> None:
    known = {teacher.name: teacher.sha256 for teacher in archive.teachers}
    archive.check(specs, ["a"], KEY, known)
    error = refusal(lambda: archive.check(specs, ["a"], KEY, known | {"first": "0" * 64}))
    assert error.key == KEY and "answers of other weights of first" in error.what


@pytest.mark.parametrize(
    "change", [{"task": "single_label"}, {"labels": ["b", "a", "c"]}, {"labels": ["a", "b"]}]
)
def test_another_task_and_other_labels_are_refused_by_the_teacher(
    archive: Archive, specs: list[TeacherSpec], change: dict[str, Any]
) -> None:
    changed = [specs[0].model_copy(update=change), specs[1]]
    error = refusal(lambda: archive.check(changed, ["a"], KEY))
    assert f"other {next(iter(change))} for first" in error.what


def test_a_label_that_no_teacher_in_it_knows_is_refused(
    archive: Archive, specs: list[TeacherSpec]
) -> None:
    assert "knows e" in refusal(lambda: archive.check(specs, ["a", "e"], KEY)).what


THOUSAND = [f"kind {index}" for index in range(1000)]


@pytest.fixture
def large(tmp_path: Path) -> Archive:
    """An archive of one teacher that knows a thousand labels."""
    knowing = FIRST.model_copy(update={"labels": THOUSAND})
    with writer(tmp_path, teachers=[knowing]) as writing:
        writing.add(first_column=0, **made(0, 1) | {"logits": {"first": torch.zeros(1, 1000)}})
    return Archive.open(str(tmp_path), KEY)


@pytest.mark.parametrize(
    ("labels", "there", "here"),
    [
        (["other", *THOUSAND[1:]], ": kind 0, kind 1, ", " are other, kind 1, "),
        ([*THOUSAND[:500], "other"], ": ..., kind 499, kind 500, ", " are ..., kind 499, other"),
        (THOUSAND[:500], ": ..., kind 499, kind 500, ", " are ..., kind 499"),
        ([*THOUSAND, "other"], ": ..., kind 999", " are ..., kind 999, other"),
    ],
)
def test_of_a_thousand_labels_a_line_shows_where_they_differ(
    large: Archive, specs: list[TeacherSpec], labels: list[str], there: str, here: str
) -> None:
    own = specs[0].model_copy(update={"labels": labels})
    error = refusal(lambda: large.check([own], ["kind 1"], KEY))
    assert there in error.what and here in error.remedy
    assert len(str(error)) < 800


def test_a_label_like_one_of_a_thousand_is_refused_by_that_one(
    large: Archive, specs: list[TeacherSpec]
) -> None:
    own = specs[0].model_copy(update={"labels": THOUSAND})
    error = refusal(lambda: large.check([own], ["kin 999", *map(str, range(500))], KEY))
    assert error.remedy.startswith("some of kind 999, ")
    assert len(str(error)) < 800


# an object store


@pytest.fixture
def bucket(object_store: ObjectStore) -> Callable[..., str]:
    """The URI of a folder in a bucket, the only one that is there unless another is named."""
    return object_store.uri


def test_an_object_store_holds_an_archive_like_a_disk(
    bucket: Callable[..., str], tmp_path: Path
) -> None:
    place = bucket("some/archive")
    refuse_existing(place, KEY)
    for folder in (place, tmp_path):
        filled(folder, [10, 7], rows_per_shard=5)
        filled(folder, [24], rank=1)
    assert refusal(lambda: refuse_existing(place, KEY)).key == KEY
    remote, local = (Archive.open(str(folder), KEY) for folder in (place, tmp_path))
    assert len(remote) == 41
    for batch, same in zip(taken(remote, 10), taken(local, 10), strict=True):
        assert batch.images.equal(same.images) and numbers(batch) == numbers(same)


def test_an_object_store_shows_a_shard_only_when_it_is_complete(
    bucket: Callable[..., str],
) -> None:
    place = bucket("unfinished")
    with writer(place, rows_per_shard=1500) as writing:
        writing.add(first_column=0, **made(0, 1100))
        refuse_existing(place, KEY)
    assert len(Archive.open(place, KEY)) == 1100


def test_a_missing_prefix_is_refused_without_telling_the_password(
    bucket: Callable[..., str],
) -> None:
    error = refusal(lambda: Archive.open(bucket("none"), KEY))
    assert error.what == "s3://bucket/none does not exist"


def test_a_bucket_that_cannot_be_made_is_refused(bucket: Callable[..., str]) -> None:
    error = refusal(lambda: writer(bucket("archive", bucket="other")))
    assert "s3://other/archive cannot be written" in error.what
    assert SECRET not in str(error)
