"""One of several workers, in a process of its own, and what it finds out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.errors import NonFiniteLoss
from dfka_dist.losses import LossReport
from dfka_dist.models.sources import read_all_weights
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.collectives import average_buffers, rank_and_size
from dfka_dist.training.engines import Engine
from dfka_dist.training.objective import refuse_non_finite
from dfka_dist.training.turns import only_synthesizing
from distributed.game import BATCH, Game, draw, networks, without_batch_norm


def work(rank: int, size: int, folder: Path, specs: list[TeacherSpec]) -> None:
    """Join the others, play, and leave the findings in `folder/<rank>.pt`."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    found = gradients(specs) | {"refusal": refusal(), "buffer": averaged_buffer()}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def gradients(specs: list[TeacherSpec]) -> dict[str, Any]:
    """Of one step of either engine, each taken by this worker's share of the global batch."""
    rank, size = rank_and_size()
    share = BATCH // size
    teachers = LocalTeachers(load_teachers(specs, read_all_weights(specs)))
    made = networks(specs, teachers)
    without_batch_norm(made.generator)
    without_batch_norm(made.target.trunk)
    without_batch_norm(made.block)
    columns = range(rank * share, (rank + 1) * share)
    game = Game(made, teachers, zero_stage=1, columns=columns)
    drawn = draw(teachers, 0, columns)
    engines = {
        "generator": game.synthesis.engine,
        "dual": game.dual.engine,
        "block": game.block.engine,
    }
    untouched = {name: flat(engine) for name, engine in engines.items()}
    with only_synthesizing(made.generator):
        link = made.generator(drawn.noise, drawn.asked_for).features[-1].feature
    # With plain SGD and a rate of 1 the way that is gone is the gradient.
    criticism = game.generator_step(drawn, rate=1.0)
    report = game.dual_step(criticism.labelled, rate=1.0)
    game.block_step(criticism.labelled, link, rate=1.0)
    found: dict[str, Any] = {name: untouched[name] - flat(own) for name, own in engines.items()}
    found["terms"] = [*criticism.report.terms, *report.terms]
    game.destroy()
    return found


def flat(engine: Engine) -> Tensor:
    """All parameters of a network as one vector."""
    state = engine.state()
    return torch.cat([state[name].flatten() for name, _ in engine.network.named_parameters()])


def refusal() -> str:
    """What this worker raises when the loss of the last worker alone is not a number."""
    rank, size = rank_and_size()
    wrong = torch.tensor(torch.nan if rank == size - 1 else 1.0)
    terms = {"one_hot": torch.tensor(1.0), "entropy": wrong}
    try:
        refuse_non_finite(LossReport(wrong, terms))
    except NonFiniteLoss as error:
        return str(error)
    return ""


def averaged_buffer() -> Tensor:
    """The running mean of a layer that was `rank` on every worker."""
    layer = torch.nn.BatchNorm2d(1)
    assert layer.running_mean is not None
    layer.running_mean.fill_(rank_and_size()[0])
    average_buffers(layer)
    return layer.running_mean
