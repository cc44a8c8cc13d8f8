"""Two workers do together what one does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import multiprocessing

from dfka_dist.config import LossWeights, TeacherSpec
from distributed.worker import gradients, work

TOLERANCE = 1e-5
Findings = dict[str, Any]


@pytest.fixture(scope="module")
def chosen(specs: dict[str, TeacherSpec]) -> list[TeacherSpec]:
    return [specs["first"], specs["second"]]


@pytest.fixture(scope="module")
def one(process_group: None, chosen: list[TeacherSpec]) -> Findings:
    return gradients(chosen)


@pytest.fixture(scope="module")
def two(
    process_group: None, chosen: list[TeacherSpec], tmp_path_factory: pytest.TempPathFactory
) -> list[Findings]:
    """What each of two workers found, in processes of their own, joined by gloo."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(work, args=(2, folder, chosen), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("network", ["generator", "dual", "block"])
def test_two_workers_have_the_gradient_of_one_with_the_same_global_batch(
    one: Findings, two: list[Findings], network: str
) -> None:
    expected = one[network]
    assert (two[0][network] - expected).norm() / expected.norm() <= TOLERANCE


@pytest.mark.parametrize("network", ["generator", "dual", "block"])
def test_two_workers_take_the_same_step(two: list[Findings], network: str) -> None:
    assert two[0][network].equal(two[1][network])


def test_the_gradient_that_was_compared_is_that_of_every_term(two: list[Findings]) -> None:
    streams = {"link"}  # the weight of a whole stream, which the block learns from too
    assert set(two[0]["terms"]) == set(LossWeights.model_fields) - streams


def test_a_loss_that_is_not_finite_on_one_worker_stops_both_with_its_name(
    two: list[Findings],
) -> None:
    assert [found["refusal"] for found in two] == ["the loss is not finite: entropy"] * 2


def test_averaged_statistics_are_those_of_all_workers(two: list[Findings]) -> None:
    assert [found["buffer"].item() for found in two] == [0.5, 0.5]
