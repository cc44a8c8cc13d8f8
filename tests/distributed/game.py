"""Generator and dual generator on tiny networks, each with its engine, to be moved step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfka_dist.config import LossWeights, TeacherSpec
from dfka_dist.losses import LossReport
from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.branching import Branching, build_target
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.synthesis import Criticism, Synthesis

BATCH, LATENT = 8, 6
RATE = 0.05
LABELS = ["c", "a"]
"""What is wanted of a, b and c: one is not, and the order is the user's."""
EVERY_TERM = LossWeights(**dict.fromkeys(LossWeights.model_fields, 0.5))


@dataclass(frozen=True)
class Networks:
    generator: GroupStackGenerator
    target: TargetNet


def networks(specs: Sequence[TeacherSpec], teachers: Teachers, **target: Any) -> Networks:
    """The same random networks for the same arguments, one teacher in need of adapters."""
    tree = {"run": {"name": "game"}, "teachers": [spec.model_dump() for spec in specs]}
    wanted = {"labels": LABELS, "arguments": {"widths": [4, 6, 8]}} | target
    design = Branching(config, teachers.descriptions).design()
    shapes = {name: known.shapes[:-1] for name, known in teachers.descriptions.items()}
    image = (design.input.channels, design.input.size, design.input.size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = GroupStackGenerator(
            latent=LATENT,
            shapes=[image, *shapes[specs[0].name][1:]],
            teachers=dict(shapes),
            labels=len(LABELS),
        )
        _unsettle(generator)
        return Networks(generator, build_target(design, teachers))


def without_batch_norm(network: nn.Module) -> None:
    """Every image alone: nothing is left that depends on how a batch is split."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())


@dataclass(frozen=True)
class Draw:
    noise: Tensor
    asked_for: Tensor
    targets: dict[str, Tensor]


def draw(teachers: Teachers, step: int, rows: range = range(BATCH)) -> Draw:
    """Some rows of the batch of a step."""
    random = torch.Generator().manual_seed(step)
    noise = torch.randn(BATCH, LATENT, generator=random)[rows.start : rows.stop]
    chosen = torch.arange(BATCH)[rows.start : rows.stop] // 2 % len(LABELS)
    asked_for = nn.functional.one_hot(chosen, len(LABELS)).float()
    targets = {}
    for name, known in teachers.descriptions.items():
        columns = [
            asked_for[:, LABELS.index(label)] if label in LABELS else torch.zeros(len(noise))
            for label in known.spec.labels
        ]
        targets[name] = torch.stack(columns, dim=1)
    return Draw(noise, asked_for, targets)


class Game:
    """Both engines with plain SGD, every loss term on."""

    def __init__(self, networks: Networks, teachers: Teachers, *, zero_stage: int) -> None:
        self.teachers, self.target = teachers, networks.target
        generator, dual = (
            Engine(
                network,
                micro_batch=BATCH,
                zero_stage=zero_stage,
                precision="fp32",
                rate=RATE,
                optimizer="sgd",
            )
            for network in (networks.generator, networks.target.trunk)
        )
        self.synthesis = Synthesis(
            engine=generator, teachers=teachers, weights=EVERY_TERM, precision="fp32"
        )
        tasks = {name: known.spec.task for name, known in teachers.descriptions.items()}
        self.dual = Dual(engine=dual, target=self.target, tasks=tasks, weights=EVERY_TERM)

    def generator_step(self, drawn: Draw, rate: float = RATE) -> Criticism:
        self.synthesis.engine.network.train()
        batch = self.synthesis.ask(drawn.noise, drawn.asked_for, drawn.targets)
        criticism = self.synthesis.criticise(batch, self.target, EVERY_TERM)
        self.synthesis.learn(batch, criticism, rate)
        return criticism

    def dual_step(self, labelled: Labelled, rate: float = RATE) -> LossReport:
        return self.dual.learn(labelled, rate)

    def destroy(self) -> None:
        self.synthesis.engine.destroy()
        self.dual.engine.destroy()


def _unsettle(generator: GroupStackGenerator) -> None:
    """Filters begin as if they were not there; here they shall be in the middle of their work."""
    for name, parameter in generator.filters.named_parameters():
        if "excite" in name:
            nn.init.normal_(parameter, std=0.5)
