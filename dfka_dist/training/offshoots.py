"""Targets whose branches leave a trained trunk elsewhere than where they were trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.training.blocks import MEASURED, dual_losses, train_filters
from dfka_dist.training.classroom import learned
from dfka_dist.training.collectives import global_mean
from dfka_dist.training.dual import Lesson
from dfka_dist.training.memory import Labelled
from dfka_dist.training.recipes import trained_design
from dfka_dist.training.regroup import DualState
from dfka_dist.training.supply import Supply
from dfka_dist.training.workshop import Workshop

Losses = dict[str, dict[int, float]]
"""L_d^{b,m} per teacher and depth."""


class Offshoots:
    """A dual generator as it was trained, and what becomes of it for branches elsewhere.

    The recipe paper has trained every depth: its targets are made of one dual generator. In the
    others only the last block has learned to speak to the teachers: filters at the other depths
    come first, and then trunk and filters of each target learn on, for itself.

    Args:
        dual: filters are added to it.
    """

    def __init__(self, workshop: Workshop, supply: Supply, dual: DualState) -> None:
        self._workshop, self._supply, self._dual = workshop, supply, dual
        self._is_paper = workshop.config.training.recipe == "paper"
        self._own: list[tuple[Architecture, DualState]] = []

    @property
    def even(self) -> dict[str, Architecture]:
        """With all branches at the same depth, by name."""
        branching = self._workshop.branching
        depths = range(1, branching.trunk.depth + 1)
        return {f"depth {d}": branching.design(branching.everywhere(d)) for d in depths}

    def target(self, design: Architecture) -> TargetNet:
        """A new target."""
        dual = next((dual for own, dual in self._own if own == design), self._dual)
        return dual.target(design, self._workshop.teachers)

    def grow(self, phase: str, designs: Iterable[Architecture]) -> None:
        """Let those learn on that need it and have not yet; the teachers' own blocks stay."""
        there = [trained_design(self._workshop), *(own for own, _ in self._own)]
        named = {str(n): each for n, each in enumerate(designs) if each not in there}
        if self._is_paper or not named:  # nobody needs the teachers' answers
            return
        training = self._workshop.config.training
        if not self._own:
            train_filters(self._workshop, self._dual, self._supply, training.branch_steps)
        named = once(named)
        states = learned(
            self._workshop,
            phase,
            self._supply,
            {name: self.target(design) for name, design in named.items()},
            steps=training.branch_steps,
            rate=training.rehearsal_rate,
            whole=False,
        )
        for name, state in states.items():
            self._own.append((named[name], DualState.of_trunk(state, named[name])))

    def losses(self) -> Losses:
        """L_d^{b,m} of stream 1 on unseen images; of each teacher's branch where all leave at the
        same depth, if each target has learned for itself."""
        if self._is_paper:
            return dual_losses(self._workshop, self._dual, self._supply)
        found: Losses = {name: {} for name in self._workshop.panel.voices}
        batches = list(self._supply.unseen("measure", range(MEASURED)))
        for depth, design in enumerate(self.even.values(), 1):
            target = self.target(design).to(self._workshop.device).eval()
            parts = [self._parts(target, batch) for batch in batches]
            for name, own in found.items():
                mean = torch.stack([each[name] for each in parts]).mean()
                own[depth] = global_mean(mean).item()
        return found

    @torch.no_grad()
    def _parts(self, target: TargetNet, batch: Labelled) -> dict[str, Tensor]:
        lesson = Lesson(batch, self._workshop.panel, self._workshop.config.losses)
        return lesson.parts(lesson.concerned(target(batch.images)))


def once(named: Mapping[str, Architecture]) -> dict[str, Architecture]:
    """Those that are the same under their first name."""
    found: dict[str, Architecture] = {}
    for name, design in named.items():
        if design not in found.values():
            found[name] = design
    return found
