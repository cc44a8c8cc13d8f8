"""Generator and dual generator on tiny networks, each with its engine, to be moved step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfka_dist.config import InputSpec, LossWeights, RunConfig, TeacherSpec
from dfka_dist.loading import parse
from dfka_dist.losses import LossReport
from dfka_dist.models.dual import DualBlock
from dfka_dist.models.filters import Shape
from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.target import TargetNet, trunk, trunk_shapes
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.altering import MOVES
from dfka_dist.training.branching import Branching, build_target
from dfka_dist.training.draws import Drawn
from dfka_dist.training.dual import BlockDual, Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Panel
from dfka_dist.training.synthesis import Synthesis

BATCH, LATENT = 8, 6
RATE = 0.05
JITTER = 0.2
DEPTH = 2
"""Of the block that is trained alone."""
LABELS = ["c", "a"]
"""What is wanted of a, b and c: one is not, and the order is the user's."""
EVERY_TERM = LossWeights(**dict.fromkeys(LossWeights.model_fields, 0.5))


@dataclass(frozen=True)
class Networks:
    config: RunConfig
    generator: GroupStackGenerator
    target: TargetNet
    block: DualBlock
    """T^2 behind a frozen T^1, of other widths than those of the target and the generator."""


def networks(specs: Sequence[TeacherSpec], teachers: Teachers, **target: Any) -> Networks:
    """The same random networks for the same arguments, one teacher in need of adapters."""
    config = parse(
        {
            "run": {"name": "game"},
            "teachers": [spec.model_dump() for spec in specs],
            "target": {"labels": LABELS, "arguments": {"widths": [4, 6, 8]}} | target,
            "training": {"batch_size": BATCH},
        }
    )
    design = Branching(config, teachers.descriptions).design()
    shapes = {name: known.shapes[:-1] for name, known in teachers.descriptions.items()}
    image = (design.input.channels, design.input.size, design.input.size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = GroupStackGenerator(
            latent=LATENT,
            shapes=[image, *shapes[specs[0].name][1:]],
            teachers=dict(shapes),
            labels=len(config.asked_labels),
        )
        block = _block({n: own[DEPTH] for n, own in shapes.items()}, generator.shapes[DEPTH - 1])
        _unsettle(generator)
        _unsettle(block)
        return Networks(config, generator, build_target(design, teachers), block)


def without_batch_norm(network: nn.Module) -> None:
    """Every image alone: nothing is left that depends on how a batch is split."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())


def draw(teachers: Teachers, step: int, rows: range = range(BATCH)) -> Drawn:
    """Some rows of the batch of a step."""
    random = torch.Generator().manual_seed(step)
    noise = torch.randn(BATCH, LATENT, generator=random)[rows.start : rows.stop]
    known = {name: own.spec.labels for name, own in teachers.descriptions.items()}
    labels = list(dict.fromkeys([*LABELS, *(label for own in known.values() for label in own)]))
    chosen = torch.arange(BATCH)[rows.start : rows.stop] // 2 % len(labels)
    asked_for = nn.functional.one_hot(chosen, len(labels)).float()
    targets = {
        name: torch.stack([asked_for[:, labels.index(label)] for label in own], dim=1)
        for name, own in known.items()
    }
    moves = torch.rand(BATCH, MOVES, generator=random)[rows.start : rows.stop]
    return Drawn(noise, asked_for, targets, moves)


class Turn(NamedTuple):
    """What a step of the generator gave."""

    report: LossReport
    labelled: Labelled


class Game:
    """All engines with plain SGD, every loss term on.

    Args:
        columns: of the batch, that are this worker's.
    """

    def __init__(
        self,
        networks: Networks,
        teachers: Teachers,
        *,
        zero_stage: int,
        columns: range = range(BATCH),
        weights: LossWeights = EVERY_TERM,
    ) -> None:
        self.target, self.weights = networks.target, weights
        self.panel = Panel(networks.config, teachers, columns, "fp32")
        generator, dual, block = (
            Engine(
                network,
                micro_batch=BATCH,
                zero_stage=zero_stage,
                precision="fp32",
                rate=RATE,
                optimizer="sgd",
            )
            for network in (networks.generator, networks.target.trunk, networks.block)
        )
        own: dict[str, Any] = {"panel": self.panel, "weights": weights}
        self.synthesis = Synthesis(engine=generator, jitter=JITTER, **own)
        self.dual = Dual(engine=dual, target=self.target, **own)
        entries = dict.fromkeys(teachers.descriptions, DEPTH)
        self.block = BlockDual(engine=block, entries=entries, **own)

    def generator_step(self, drawn: Drawn, rate: float = RATE) -> Turn:
        batch = self.synthesis.ask(drawn)
        heard = self.synthesis.hear(batch, self.target, self.weights)
        criticism = self.synthesis.criticise(batch, heard, self.weights)
        self.synthesis.learn(batch, criticism, rate)
        return Turn(criticism.report, heard.labelled)

    def dual_step(self, labelled: Labelled, rate: float = RATE) -> LossReport:
        return self.dual.learn(labelled, rate)

    def block_step(self, labelled: Labelled, link: Tensor, rate: float = RATE) -> LossReport:
        return self.block.learn(labelled, link, rate)

    def destroy(self) -> None:
        for player in (self.synthesis, self.dual, self.block):
            player.engine.destroy()


def _block(wanted: dict[str, Shape], link: Shape) -> DualBlock:
    spec = InputSpec(channels=3, size=16)
    blocks = trunk("convnet", {"widths": [5, 6]}, spec)
    shapes = trunk_shapes(blocks, spec)
    return DualBlock(
        Preprocessing(spec),
        blocks,
        frozen=DEPTH - 1,
        source=shapes[DEPTH],
        wanted=wanted,
        link=(link, shapes[DEPTH - 1]),
    )


def _unsettle(network: GroupStackGenerator | DualBlock) -> None:
    """Filters begin as if they were not there; here they shall be in the middle of their work."""
    for name, parameter in network.filters.named_parameters():
        if "excite" in name:
            nn.init.normal_(parameter, std=0.5)
