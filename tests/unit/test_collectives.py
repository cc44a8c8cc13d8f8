"""Sums over workers, for the one worker that there is without a process group."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from dfka_dist.training.collectives import (
    Vote,
    average_buffers,
    global_mean,
    global_sum,
    is_out_of_time,
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


def alone_in_a_collective(rank: int, meeting: str, told: str) -> None:
    """Rank 1 does not come.

    Ends without the interpreter's clean-up: gloo's threads are still in the collective that was
    given up, and C++ may end such a process with SIGABRT.
    """
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    torch.distributed.barrier()
    if rank == 0:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        try:
            torch.distributed.all_reduce(torch.ones(1))
        except RuntimeError as error:
            Path(told).write_text(f"{is_out_of_time(error)} {error}")
    else:
        time.sleep(3)
    os._exit(0)


def test_one_that_does_not_come_to_a_collective_is_out_of_time(tmp_path: Path) -> None:
    meeting, told = f"file://{tmp_path / 'rendezvous'}", tmp_path / "told"
    torch.multiprocessing.spawn(alone_in_a_collective, (meeting, str(told)), nprocs=2)
    assert told.read_text().startswith("True "), told.read_text()


LATE = 1.0
"""Seconds that rank 0 is late to vote."""


def two_votes(rank: int, meeting: str, told: str) -> None:
    """Rank 0 is late for the second; rank 1 says how long it waited, and what is heard."""
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    vote = Vote(torch.device("cpu"))
    vote.cast(False)
    torch.distributed.barrier()
    if rank == 0:
        time.sleep(LATE)
    begin = time.monotonic()
    vote.cast(rank == 0)
    before = time.monotonic() - begin
    vote.settle()
    waited = time.monotonic() - begin
    heard = vote.cast(False)
    vote.settle()
    if rank == 1:
        Path(told).write_text(f"{before} {waited} {heard}")
    torch.distributed.destroy_process_group()


def test_a_vote_is_with_everybody_once_it_is_settled(tmp_path: Path) -> None:
    """And processes may end then; with a word that is out, C++ ends them with SIGABRT."""
    meeting, told = f"file://{tmp_path / 'rendezvous'}", tmp_path / "told"
    torch.multiprocessing.spawn(two_votes, (meeting, str(told)), nprocs=2)
    before, waited, heard = told.read_text().split()
    assert float(before) < LATE / 2 < float(waited)
    assert heard == "True"


@pytest.mark.parametrize(
    ("said", "late"),
    [
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, "
            "OpType=ALLREDUCE, Timeout(ms)=5000) ran for 5003 milliseconds before timing out.",
            True,
        ),
        ("[gloo/transport/tcp/pair.cc:534] Read error [10.0.0.2]:1: Connection timed out", False),
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1", False),
    ],
)
def test_a_lost_connection_is_not_out_of_time(said: str, late: bool) -> None:
    assert is_out_of_time(RuntimeError(said)) == late
