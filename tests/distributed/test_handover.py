"""What one number of workers left, another goes on from: parameters, moments, buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from distributed.handover import STAGES, Player, begin, work

CLOSE = {"rtol": 0, "atol": 1e-6}
Found = dict[int, tuple[Tensor, Tensor]]
"""By ZeRO stage: parameters in the end, and the buffer halfway."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handover")


@pytest.fixture(scope="module")
def alone(process_group: None, folder: Path) -> Found:
    """Parameters halfway and in the end of one worker, who leaves a checkpoint."""
    return {stage: begin(stage, folder / f"1-{stage}") for stage in STAGES}


@pytest.fixture(scope="module")
def two(alone: Found, folder: Path) -> Found:
    """Of two workers that went on from there."""
    multiprocessing.spawn(work, args=(2, folder), nprocs=2)
    found: Found = torch.load(folder / "0.pt")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_go_on_from_what_one_left(alone: Found, two: Found, stage: int) -> None:
    halfway, end = alone[stage]
    assert not torch.allclose(halfway, end, rtol=0, atol=0.01)
    torch.testing.assert_close(two[stage][0], end, **CLOSE)


@pytest.mark.parametrize("stage", STAGES)
def test_one_worker_goes_on_from_what_two_left(
    alone: Found, two: Found, folder: Path, stage: int
) -> None:
    end, seen = Player(stage).return_to(folder / f"2-{stage}")
    torch.testing.assert_close(end, alone[stage][1], **CLOSE)
    assert seen.item() == 0.5, "the mean of 0 and 1"


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_that_went_on_from_others_goes_on_from_itself(
    alone: Found, two: Found, folder: Path, tmp_path: Path, stage: int
) -> None:
    player = Player(stage)
    player.return_to(folder / f"2-{stage}")
    player.leave(tmp_path)
    end, _ = Player(stage).return_to(tmp_path)
    assert end.equal(player.play(range(3, 6)))
