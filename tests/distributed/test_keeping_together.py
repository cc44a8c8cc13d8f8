"""Two workers keep a checkpoint together or not at all, and take the same one down."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from objectstore import ObjectStore
from torch import multiprocessing

from distributed.saver import STAGES, work


@pytest.fixture(scope="module")
def two(
    process_group: None, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two workers found, in processes of their own, joined by gloo."""
    folder = tmp_path_factory.mktemp("savers")
    uri = object_store.uri(folder.name)
    multiprocessing.spawn(work, args=(2, folder, uri), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("trouble", "at"), [("full", 2), ("homeless", 1)])
def test_a_disk_that_has_no_room_on_one_worker_costs_both_one_checkpoint(
    two: list[dict[str, Any]], trouble: str, at: int
) -> None:
    said = re.compile(f"no checkpoint at step {at}: worker 1: .*; the run goes on")
    for found in two:
        (warning,) = found[trouble]["warnings"]
        assert said.fullmatch(warning)
        assert found[trouble]["steps"] == [step for step in (1, 2, 3) if step != at]


def test_a_disk_that_has_no_room_on_one_worker_ends_a_run_that_is_to_end_then(
    two: list[dict[str, Any]],
) -> None:
    assert two[0]["ended"] == two[1]["ended"]
    assert two[0]["ended"].startswith("no checkpoint at step 2: worker 1: ")


def test_a_checkpoint_that_is_broken_for_one_worker_is_passed_over_by_both(
    two: list[dict[str, Any]],
) -> None:
    assert [found["differing"]["step"] for found in two] == [2, 2]
    for found in two:
        assert "passing over a checkpoint: worker 1: " in found["differing"]["warnings"][0]


def test_a_folder_that_workers_do_not_share_ends_the_run_and_loses_nothing(
    two: list[dict[str, Any]],
) -> None:
    for found in two:
        unmarked, marked = found["apart"]["said"]
        assert re.fullmatch("no checkpoint in .*apart-. is whole: .*", unmarked)
        assert re.fullmatch("worker 1: .*apart-1 is not what the run was started with .*", marked)
        (warning,) = found["apart"]["warnings"]
        assert re.fullmatch(
            "no checkpoint at step 1: .* do they share it\\?; the run goes on", warning
        )
    assert [found["apart"]["left"] for found in two] == [[2, 3], []]


def test_a_network_that_is_not_finite_on_one_worker_is_kept_by_neither(
    two: list[dict[str, Any]],
) -> None:
    said = "no checkpoint at step 2: not finite any more: worker 1: engine"
    assert [found["spoiled"] for found in two] == [{"steps": [1], "said": said}] * 2


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_go_on_bit_for_bit_from_what_each_has_fetched(
    two: list[dict[str, Any]], stage: int
) -> None:
    assert [found["fetched"][stage]["same"] for found in two] == [True, True]


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_fetches_no_shard_buffers_or_memory_of_another(
    two: list[dict[str, Any]], stage: int
) -> None:
    for rank, found in enumerate(two):
        names = found["fetched"][stage]["names"]
        other = 1 - rank
        shards = [f"zero_pp_rank_{other}_", f"buffers-{other}.", f"memory-{other}-of-2"]
        assert [name for name in names if any(shard in name for shard in shards)] == []
        assert any(f"zero_pp_rank_{rank}_" in name for name in names)
        assert any(f"memory-{rank}-of-2" in name for name in names)
