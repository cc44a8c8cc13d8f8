"""Sums over all workers that a loss can be taken of."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor, nn

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """This worker's rank and the number of workers; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_timeout() -> None:
    """Let collectives of every process group wait as long as those of all workers; DeepSpeed's own
    would wait for torch's 30 minutes."""
    if not dist.is_initialized():
        return
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    timeout = c10d._get_default_group()._get_backend(device).options._timeout
    for group in c10d._world.pg_map:
        c10d._set_pg_timeout(timeout, group)


LATE = re.compile(
    r"Timed out waiting \d+ms for \w+ operation to complete"  # gloo
    r"|Application timeout caused pair closure"  # gloo, where another operation found that
    r"|Watchdog caught collective operation timeout"  # NCCL
)
"""What is said where somebody does not come to a collective; a connection that timed out in the
kernel is one that is lost, and workers may be started again."""


def is_out_of_time(error: RuntimeError) -> bool:
    """Whether somebody did not come to a collective in time; torch has no type for it."""
    return LATE.search(str(error)) is not None


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.size = rank_and_size()[1]
        total = value.clone()
        if ctx.size > 1:
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every worker takes the same loss of the same sum, and engines average gradients over
        # workers.
        gradient: Tensor = gradients[0] * ctx.size
        return gradient


def global_sum(value: Tensor) -> Tensor:
    """The sum over workers of a tensor, differentiable.

    A loss of it must be the same on all workers and its gradient be averaged over them, as
    engines do.
    """
    total: Tensor = _GlobalSum.apply(value)  # type: ignore[no-untyped-call]
    return total


def global_mean(value: Tensor) -> Tensor:
    """The mean over workers of a tensor, differentiable; see `global_sum`."""
    mean: Tensor = global_sum(value) / rank_and_size()[1]
    return mean


class Vote:
    """Whether any worker says yes, known to all of them one turn later, so that nobody waits.

    Args:
        device: of the process group's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._said: tuple[Tensor, Any] | None = None

    def cast(self, yes: bool) -> bool:
        """Say this worker's word; every worker calls.

        Returns:
            whether any said yes the last time; a worker that is alone hears itself at once.
        """
        if rank_and_size()[1] == 1:
            return yes
        before, said = self._said, torch.tensor(float(yes), device=self._device)
        self._said = said, dist.all_reduce(said, dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])

    def settle(self) -> None:
        """Wait until the last word is with everybody; what it says is heard at the next turn.

        A process that ends while gloo holds a tensor of Python's is ended with SIGABRT.
        """
        if self._said is not None:
            self._said[1].wait()


def gathered(value: T) -> list[T]:
    """That of each worker, by rank; every worker calls."""
    values = [value] * rank_and_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def said_by_any(word: str | None) -> str | None:
    """What the first worker that has something to say says; every worker calls."""
    words = gathered(word)
    several = len(words) > 1
    return next((f"worker {r}: {w}" if several else w for r, w in enumerate(words) if w), None)


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Make the floating-point buffers (BatchNorm statistics) of all workers their mean."""
    size = rank_and_size()[1]
    for buffer in network.buffers():
        if size > 1 and buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= size
