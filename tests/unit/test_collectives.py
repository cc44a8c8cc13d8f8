"""Sums over workers, for the one worker that there is without a process group."""

from __future__ import annotations

import torch
from torch import nn

from dfka_dist.training.collectives import (
    average_buffers,
    global_mean,
    global_sum,
    rank_and_size,
)


def test_without_a_process_group_there_is_one_worker() -> None:
    assert rank_and_size() == (0, 1)


def test_the_sum_over_one_worker_is_its_own() -> None:
    assert torch.equal(global_sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_the_mean_over_one_worker_is_its_own() -> None:
    assert torch.equal(global_mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_a_sum_has_a_gradient() -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(global_sum(leaf).square().sum(), leaf)
    assert torch.equal(gradient, torch.tensor([2.0, 4.0]))


def test_a_sum_does_not_change_what_is_summed() -> None:
    leaf = torch.tensor([1.0, 2.0])
    global_sum(leaf).add_(1)
    assert torch.equal(leaf, torch.tensor([1.0, 2.0]))


def test_buffers_of_one_worker_stay_as_they_are() -> None:
    network = nn.BatchNorm2d(3)
    network(torch.randn(4, 3, 2, 2))
    before = {name: value.clone() for name, value in network.named_buffers()}
    average_buffers(network)
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
