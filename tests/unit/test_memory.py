"""Remembered images: the newest that fit, found in the same place by any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfka_dist.training.checkpoint import Reading, Writing
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.streams import Streams

BATCH = 8
EVERYONES = torch.full((2,), -1)
BYTES = BATCH * (4 * 4 * 2 + 3 * 4)  # of one step: 1x4x4 images in 16 bits, 3 logits in 32


def batch(step: int, columns: range = range(BATCH)) -> Labelled:
    """Every image is plain and says which step and column it is of; so do its logits."""
    index = torch.tensor([float(column) for column in columns])
    shade = step / 64 + index / 1024  # exact in 16 bits
    images = shade[:, None, None, None].expand(-1, 1, 4, 4)
    logits = {"t": (100 * step + index)[:, None].expand(-1, 3)}
    return Labelled(images, logits, torch.tensor(columns) // 2 % 2)


def filled(steps: int, columns: range = range(BATCH), capacity: int = 4 * BYTES) -> SampleMemory:
    share = capacity * len(columns) // BATCH
    memory = SampleMemory(columns=columns, capacity=share, streams=Streams(0))
    for step in range(steps):
        memory.add(batch(step, columns))
    return memory


def whence(drawn: Labelled) -> list[tuple[int, int]]:
    """Step and column of every image, from its logits."""
    return [divmod(int(said[0]), 100) for said in drawn.logits["t"]]


def test_a_memory_is_empty_at_first() -> None:
    assert len(filled(0)) == 0


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (3, 3), (4, 4), (5, 4), (40, 4)])
def test_a_memory_keeps_as_many_steps_as_fit(steps: int, kept: int) -> None:
    assert len(filled(steps)) == kept


def test_a_step_larger_than_the_capacity_is_kept_all_the_same() -> None:
    assert len(filled(3, capacity=8)) == 1


def test_only_the_newest_steps_are_remembered() -> None:
    memory = filled(10)
    steps = {step for draw in range(30) for step, _ in whence(memory.draw("x", draw))}
    assert steps == {6, 7, 8, 9}


def test_every_remembered_image_keeps_its_column() -> None:
    columns = [column for _, column in whence(filled(10).draw("x", 0))]
    assert columns == list(range(BATCH))


def test_images_and_logits_stay_together() -> None:
    drawn = filled(10).draw("x", 0)
    shades = [step / 64 + column / 1024 for step, column in whence(drawn)]
    assert drawn.images[:, 0, 0, 0].tolist() == shades


def test_remembered_images_come_back_in_thirty_two_bits() -> None:
    assert filled(1).draw("x", 0).images.dtype == torch.float32


def test_draws_differ_from_step_to_step() -> None:
    memory = filled(10)
    assert whence(memory.draw("x", 0)) != whence(memory.draw("x", 1))


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 9), at=st.integers(1, BATCH - 1), draw=st.integers(0, 100))
def test_two_workers_draw_what_one_would(steps: int, at: int, draw: int) -> None:
    alone = filled(steps).draw("x", draw)
    pair = [filled(steps, share).draw("x", draw) for share in (range(at), range(at, BATCH))]
    together = Labelled.joined(*pair)
    assert whence(together) == whence(alone)
    assert torch.equal(together.images, alone.images)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_two_workers_have_the_newest_that_one_would(stride: int) -> None:
    alone = whence(filled(6).newest(1, stride))
    pair = [whence(filled(6, share).newest(1, stride)) for share in (range(4), range(4, BATCH))]
    assert [*pair[0], *pair[1]] == alone


@pytest.mark.parametrize("steps", [1, 4, 5, 9])
def test_the_newest_are_of_the_last_step(steps: int) -> None:
    assert whence(filled(steps).newest(0, 1)) == [(steps - 1, c) for c in range(BATCH)]


def test_offsets_go_through_all_of_the_newest() -> None:
    columns = [c for offset in range(4) for _, c in whence(filled(2).newest(offset, 4))]
    assert sorted(columns) == list(range(BATCH))


def test_what_is_remembered_carries_no_graph() -> None:
    memory = SampleMemory(columns=range(2), capacity=1000, streams=Streams(0))
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    memory.add(Labelled(images * 2, {"t": images.sum((1, 2))}, EVERYONES))
    drawn = memory.draw("x", 0)
    assert not (drawn.images.requires_grad or drawn.logits["t"].requires_grad)


def test_later_changes_of_a_batch_do_not_reach_what_is_remembered() -> None:
    memory = SampleMemory(columns=range(2), capacity=1000, streams=Streams(0))
    own = Labelled(torch.ones(2, 1, 4, 4), {"t": torch.ones(2, 3)}, EVERYONES)
    memory.add(own)
    own.logits["t"].zero_()
    assert torch.equal(memory.draw("x", 0).logits["t"], torch.ones(2, 3))


def test_batches_are_joined_one_after_the_other() -> None:
    joined = Labelled.joined(batch(1), batch(2))
    assert whence(joined) == [(step, column) for step in (1, 2) for column in range(BATCH)]


def test_homes_stay_with_their_columns() -> None:
    memory = filled(10)
    joined = Labelled.joined(memory.newest(1, 2), memory.draw("x", 0))
    columns = torch.tensor([column for _, column in whence(joined)])
    assert torch.equal(joined.homes, columns // 2 % 2)


# handed over to other workers


def halves() -> list[range]:
    return [range(BATCH // 2), range(BATCH // 2, BATCH)]


def left_by(memories: list[SampleMemory], place: Path) -> Reading:
    """What several workers save together."""
    (place / "now").mkdir()
    size = len(memories)
    for rank, memory in enumerate(memories):
        writing = Writing(place / "now", place / "lasting", rank, size, {})
        memory.save(writing, "memory")
        writing.close({})
    return Reading.opened(place / "now", place / "lasting")


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_one_worker_remembers_what_two_did(steps: int, tmp_path: Path) -> None:
    told = left_by([filled(steps, half) for half in halves()], tmp_path)
    memory, alone = filled(0), filled(steps)
    memory.restore(told, "memory")
    assert len(memory) == len(alone)
    if steps:
        assert memory.draw("x", 1).images.equal(alone.draw("x", 1).images)
        assert memory.draw("x", 1).homes.equal(alone.draw("x", 1).homes)


def test_a_memory_that_was_handed_over_is_saved_anew(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    memory, again = filled(0), filled(0)
    memory.restore(left_by([filled(6, half) for half in halves()], tmp_path / "first"), "memory")
    memory.add(batch(6))
    again.restore(left_by([memory], tmp_path / "second"), "memory")
    assert again.draw("x", 1).images.equal(filled(7).draw("x", 1).images)


def test_what_is_recalled_lies_on_the_memorys_own_device(tmp_path: Path) -> None:
    """Meta tensors have a device, and no numbers."""
    own = SampleMemory(
        columns=range(BATCH), capacity=4 * BYTES, streams=Streams(0), device=torch.device("meta")
    )
    own.restore(left_by([filled(6)], tmp_path), "memory")
    newest = own.newest(0, 1)
    assert {newest.images.device.type, newest.logits["t"].device.type} == {"meta"}
    assert newest.homes.device.type == "cpu", "where they are in a run that nothing disturbed"


def test_room_for_steps_that_others_had_no_room_for_holds_no_noise(tmp_path: Path) -> None:
    """Three steps fitted where they were, four fit here."""
    small = [filled(10, half, capacity=3 * BYTES) for half in halves()]
    memory = filled(0)
    memory.restore(left_by(small, tmp_path), "memory")
    steps = {step for draw in range(30) for step, _ in whence(memory.draw("x", draw))}
    assert (len(memory), steps) == (4, {7, 8, 9})
