"""An engine whose checkpoint another number of workers goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dfka_dist.training.checkpoint import Reading, Writing
from dfka_dist.training.collectives import rank_and_size
from dfka_dist.training.engines import Engine
from distributed.worker import flat

BATCH = 4
STAGES = (1, 2, 3)
HALFWAY, ALL = 3, 6
"""Steps before the checkpoint, and in all."""


class Player:
    """A network that learns from global batches, with a buffer that is its rank."""

    def __init__(self, stage: int) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(180, 3))
        network.register_buffer("seen", torch.tensor(float(rank_and_size()[0])))
        share = BATCH // rank_and_size()[1]
        self.engine = Engine(
            network, micro_batch=share, zero_stage=stage, precision="fp32", rate=0.01
        )

    def play(self, steps: range) -> Tensor:
        """All parameters after these steps."""
        rank, size = rank_and_size()
        share = BATCH // size
        for step in steps:
            batch = torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(step))
            said = self.engine(batch[rank * share : (rank + 1) * share])
            # Workers average, and each has a part of the batch's sum.
            self.engine.step([said], [torch.full_like(said, size)], rate=0.01)
        return flat(self.engine)

    def leave(self, place: Path) -> None:
        """A checkpoint in a folder of its own."""
        rank, size = rank_and_size()
        writing = Writing(place, place / "lasting", rank, size, {})
        self.engine.save(writing, "player")
        if size > 1:
            torch.distributed.barrier()  # they share a folder here, as nowhere else
        writing.close({})

    def return_to(self, place: Path) -> tuple[Tensor, Tensor]:
        """What its parameters are when it has gone on from there, and its buffer before."""
        self.engine.restore(Reading.opened(place, place / "lasting"), "player")
        seen = self.engine.network.seen.clone()
        return self.play(range(HALFWAY, ALL)), seen


def begin(stage: int, place: Path) -> tuple[Tensor, Tensor]:
    """Play, leave a checkpoint halfway; parameters then and in the end."""
    player = Player(stage)
    half = player.play(range(HALFWAY))
    player.leave(place)
    return half, player.play(range(HALFWAY, ALL))


def work(rank: int, size: int, folder: Path) -> None:
    """As one of several: go on from what one left in `folder/1-STAGE`, and leave `folder/2-STAGE`
    to it."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    found = {s: Player(s).return_to(folder / f"1-{s}") for s in STAGES}
    for stage in STAGES:
        begin(stage, folder / f"{size}-{stage}")
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
