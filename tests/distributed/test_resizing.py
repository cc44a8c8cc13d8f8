"""Another number of workers goes on with the same parameters and moments, buffers averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from distributed.resizer import STAGES, Found, work

WAYS = [(1, 2), (2, 1)]


@pytest.fixture(scope="module")
def folder(process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was found."""
    folder: Path = tmp_path_factory.mktemp("resizers")
    for size, sources in ((1, [1]), (2, [2, 1]), (1, [2])):
        multiprocessing.spawn(work, args=(size, folder, sources), nprocs=size)
    return folder


@pytest.fixture(params=[(stage, way) for stage in STAGES for way in WAYS], ids=str)
def pair(folder: Path, request: pytest.FixtureRequest) -> tuple[Found, Found, int]:
    """A run that was not disturbed, the same that went on with other workers, and the number of
    the first ones."""
    stage, (first, second) = request.param
    kept = torch.load(folder / f"{first}-from-{first}.pt")[stage]
    return kept, torch.load(folder / f"{second}-from-{first}.pt")[stage], first


def parameters(state: dict[str, torch.Tensor]) -> torch.Tensor:
    names = [name for name in state if name.endswith(("weight", "bias"))]
    return torch.cat([state[name].flatten() for name in names])


def test_parameters_are_the_same(pair: tuple[Found, Found, int]) -> None:
    kept, taken, _ = pair
    assert parameters(taken["middle"]).equal(parameters(kept["middle"]))


def test_buffers_are_the_mean(pair: tuple[Found, Found, int]) -> None:
    _, taken, first = pair
    mean = torch.arange(first).float().mean().item()
    assert taken["middle"]["1.running_mean"].unique().tolist() == [mean]
    assert taken["middle"]["1.num_batches_tracked"] == 3


def test_moments_are_the_same_as_steps_behind_show(pair: tuple[Found, Found, int]) -> None:
    """Without Adam's moments the first step alone would be another."""
    kept, taken, _ = pair
    torch.testing.assert_close(parameters(taken["end"]), parameters(kept["end"]), rtol=0, atol=1e-6)
