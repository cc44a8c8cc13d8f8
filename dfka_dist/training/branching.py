"""Regrouping: where each teacher's branch leaves the trunk, and the target that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.models.filters import Shape, TeacherFilter
from dfka_dist.models.preprocessing import common_input
from dfka_dist.models.target import (
    Architecture,
    BranchPoint,
    TargetNet,
    trunk,
    trunk_shapes,
    version,
)
from dfka_dist.teachers.interface import TeacherDescription, Teachers

Depths = Mapping[str, int]
"""Per teacher, where its branch leaves the trunk: 1..B."""


@dataclass(frozen=True)
class Trunk:
    """The blocks T^1..T^B that a configuration asks for, before any is trained."""

    shapes: list[Shape]
    """(C, H, W) at depths 0..B."""
    parameters: list[int]
    """Of the first 0..B blocks."""

    @property
    def depth(self) -> int:
        """B, the number of blocks."""
        return len(self.shapes) - 1

    @classmethod
    def of(cls, config: RunConfig, descriptions: Mapping[str, TeacherDescription]) -> Trunk:
        """What the backbone of the configuration makes of the run's images.

        Raises:
            InputError: there is no such backbone, or it does not take its arguments.
        """
        spec = common_input([description.spec.input for description in descriptions.values()])
        with torch.random.fork_rng(devices=[]):
            blocks = trunk(config.target.backbone, config.target.arguments, spec)
        own = [sum(p.numel() for p in block.parameters()) for block in blocks]
        return cls(trunk_shapes(blocks, spec), [sum(own[:d]) for d in range(len(own) + 1)])


class Branching:
    """Every way in which the branches of a run can leave its trunk.

    Args:
        descriptions: of the teachers; those that know no customised label have no branch.

    Raises:
        InputError: the target that is asked for cannot be built.
    """

    def __init__(self, config: RunConfig, descriptions: Mapping[str, TeacherDescription]) -> None:
        wanted = set(config.labels)
        heard = {n: d for n, d in descriptions.items() if wanted & set(d.spec.labels)}
        self._config, self._descriptions = config, heard
        self.trunk = Trunk.of(config, heard)
        if self.asked is not None:
            self._check_depths(self.asked)
        self._check_budget()

    @property
    def asked(self) -> Depths | None:
        """The depths that the configuration gives; None where they are to be chosen."""
        branch = self._config.target.branch
        if branch == "best" or self._config.target.max_parameters is not None:
            return None
        deepest = self.trunk.depth
        if isinstance(branch, dict):
            return {name: branch.get(name, deepest) for name in self._descriptions}
        return self.everywhere(deepest if branch == "last" else int(branch))

    def everywhere(self, depth: int) -> Depths:
        """The same depth for every teacher."""
        return dict.fromkeys(self._descriptions, depth)

    def entry(self, teacher: str, depth: int) -> int:
        """The depth of a teacher at which it goes on behind block `depth` of the trunk."""
        return self._descriptions[teacher].matching(depth, self.trunk.depth)

    def wanted(self, depth: int) -> dict[str, Shape]:
        """Per teacher the shape of the feature that it goes on with."""
        return {n: d.shapes[self.entry(n, depth)] for n, d in self._descriptions.items()}

    def adapts(self, depth: int) -> bool:
        """Whether filters at this depth have a 1x1 convolution in any case.

        In the paper's recipe every block has learned to speak to the teachers' tails. In the others
        only the last one has.
        """
        return self._config.training.recipe != "paper" and depth < self.trunk.depth

    def design(self, depths: Depths | None = None) -> Architecture:
        """The target with branches at these depths; without them those asked for, or at B."""
        depths = depths or self.asked or self.everywhere(self.trunk.depth)
        specs = [description.spec for description in self._descriptions.values()]
        return Architecture(
            dfka_dist=version(),
            labels=self._config.labels,
            input=common_input([spec.input for spec in specs]),
            backbone=self._config.target.backbone,
            arguments=self._config.target.arguments,
            branches=[self._branch(name, depths[name]) for name in self._descriptions],
        )

    def choose(self, losses: Mapping[str, Mapping[int, float]]) -> Depths:
        """p_m = argmin_b L_d^{b,m}; under a budget, the least sum over teachers that fits it.

        Args:
            losses: per teacher its dual loss at every depth 1..B.
        """
        fitting = [c for c in self._choices(losses) if self._fits(c.parameters)]
        return min(fitting, key=lambda choice: (choice.loss, choice.parameters)).depths

    def parameters(self, depths: Depths) -> int:
        """What a target with branches at these depths holds."""
        own = sum(self._branch_parameters(name, depth) for name, depth in depths.items())
        return self.trunk.parameters[max(depths.values())] + own

    def _choices(self, losses: Mapping[str, Mapping[int, float]]) -> list[_Choice]:
        """The choices that are not worse in both loss and parameters, for each deepest block."""
        found = []
        for deepest in range(1, self.trunk.depth + 1):
            front = [_Choice(0.0, self.trunk.parameters[deepest], {})]
            for name in self._descriptions:
                front = _undominated(
                    choice.with_branch(name, d, losses[name][d], self._branch_parameters(name, d))
                    for choice in front
                    for d in range(1, deepest + 1)
                )
            found += front
        return found

    def _branch(self, name: str, depth: int) -> BranchPoint:
        description, entry = self._descriptions[name], self.entry(name, depth)
        wanted = self._config.labels
        return BranchPoint(
            teacher=description.spec,
            depth=depth,
            entry=entry,
            shape=description.shapes[entry],
            adapt=self.adapts(depth),
            labels=[label for label in description.spec.labels if label in wanted],
        )

    def _branch_parameters(self, name: str, depth: int) -> int:
        description, entry = self._descriptions[name], self.entry(name, depth)
        with torch.device("meta"):
            own = TeacherFilter(
                source=self.trunk.shapes[depth],
                wanted=description.shapes[entry],
                adapt=self.adapts(depth),
            )
        return description.tail_parameters[entry] + sum(p.numel() for p in own.parameters())

    def _check_depths(self, depths: Depths) -> None:
        for name, depth in depths.items():
            if depth > self.trunk.depth:
                raise InputError(
                    "target.branch",
                    f"is {depth} for {name}",
                    f"1 to {self.trunk.depth}, the blocks of the backbone",
                )

    def _check_budget(self) -> None:
        budget = self._config.target.max_parameters
        if budget is None:
            return
        nothing = {
            n: dict.fromkeys(range(1, self.trunk.depth + 1), 0.0) for n in self._descriptions
        }
        smallest = min(choice.parameters for choice in self._choices(nothing))
        if smallest > budget:
            raise InputError(
                "target.max_parameters",
                f"{budget} is less than any branching needs",
                f"{smallest} or more",
            )

    def _fits(self, parameters: int) -> bool:
        budget = self._config.target.max_parameters
        return budget is None or parameters <= budget


@dataclass(frozen=True)
class _Choice:
    loss: float
    parameters: int
    depths: Depths

    def with_branch(self, name: str, depth: int, loss: float, parameters: int) -> _Choice:
        return _Choice(self.loss + loss, self.parameters + parameters, {**self.depths, name: depth})


def _undominated(choices: Iterable[_Choice]) -> list[_Choice]:
    """Those that no other beats in loss and parameters at once."""
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.parameters, c.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def build_target(design: Architecture, teachers: Teachers) -> TargetNet:
    """A target with a trunk of random weights and the teachers' own tails, which are frozen."""
    target = TargetNet(design)
    for branch in design.branches:
        name = branch.teacher.name
        tail = target.tails[name]
        tail.load_state_dict(teachers.tail(name, branch.entry))
        tail.requires_grad_(False)
    return target
