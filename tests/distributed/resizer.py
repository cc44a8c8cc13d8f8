"""Workers of one number that keep a checkpoint, and of another that go on from it.

Every worker has the same data, so that the mean of their gradients is that of one, however many
there are: what comes out may differ by nothing but what was not taken over. Their buffers differ.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dfka_dist.config import CheckpointSpec, TrainingSpec
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.training.diary import Diary
from dfka_dist.training.engines import Engine
from dfka_dist.training.ledger import Ledger
from dfka_dist.training.shelf import FolderShelf

STAGES = (1, 2, 3)
KEPT_AT, STEPS = 3, 5
Found = dict[str, dict[str, Tensor]]
"""States of the network: where the checkpoint is, and at the end."""


def work(rank: int, size: int, folder: Path, sources: list[int]) -> None:
    """Keep checkpoints, or go on from those of other numbers of workers, and leave what was found
    in `folder/<size>-from-<source>.pt`, by stages."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = f"file://{folder / f'rendezvous-{size}-{sources[0]}'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    for source in sources:
        found = {s: ran(FolderShelf(str(folder / f"kept-{source}-{s}"), 9), s) for s in STAGES}
        if rank == 0:
            torch.save(found, folder / f"{size}-from-{source}.pt")
    torch.distributed.destroy_process_group()


def ran(shelf: FolderShelf, stage: int) -> Found:
    """A run that keeps a checkpoint in its middle, or goes on from there."""
    diary = Diary(TrainingSpec(), LocalTeachers({}), None)
    ledger = Ledger(diary, CheckpointSpec(every=KEPT_AT), shelf)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    engine = Engine(network, micro_batch=4, zero_stage=stage, precision="fp32", rate=0.1)
    ledger.hold("engine", engine)
    found: Found = {}
    with ledger.phase("any", STEPS) as phase:
        found["middle"] = engine.state()
        for step in phase.steps():
            draw = torch.Generator().manual_seed(step)
            outputs = engine(torch.rand(4, 8, generator=draw))
            engine.step([outputs], [torch.rand(4, 3, generator=draw)], rate=0.1)
            diary.tell(step + 1)
            if step + 1 == KEPT_AT:
                network[1].running_mean.fill_(torch.distributed.get_rank())
                found["middle"] = engine.state()
    found["end"] = engine.state()
    engine.destroy()
    shelf.close()
    return found
