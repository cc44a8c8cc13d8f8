"""The trained blocks and filters of a dual generator, and the targets that can be made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.branching import build_target

State = dict[str, Tensor]


@dataclass
class DualState:
    """What training leaves of a dual generator, on the CPU."""

    blocks: dict[int, State] = field(default_factory=dict)
    """T^1..T^B by number."""
    filters: dict[tuple[int, str], State] = field(default_factory=dict)
    """f_m^b by depth b and teacher m."""
    tails: dict[str, State] = field(default_factory=dict)
    """By teacher, where they were trained too; elsewhere they are the teachers' own."""

    @classmethod
    def of_trunk(cls, state: State, design: Architecture) -> DualState:
        """From the state of a `DualGenerator`."""
        deepest = max(branch.depth for branch in design.branches)
        return cls(
            {depth: under(state, f"blocks.{depth - 1}.") for depth in range(1, deepest + 1)},
            {
                (branch.depth, branch.teacher.name): under(state, f"filters.{branch.teacher.name}.")
                for branch in design.branches
            },
        )

    def target(self, design: Architecture, teachers: Teachers) -> TargetNet:
        """Trunk and filters as they were trained, tails as the teachers have them."""
        target = build_target(design, teachers)
        self.load_into(target)
        return target

    def load_into(self, target: TargetNet) -> None:
        """Replace trunk and filters of a target that has its tails."""
        for depth, block in enumerate(target.trunk.blocks, 1):
            block.load_state_dict(self.blocks[depth])
        for branch in target.design.branches:
            name = branch.teacher.name
            target.trunk.filters[name].load_state_dict(self.filters[branch.depth, name])
            if name in self.tails:
                target.tails[name].load_state_dict(self.tails[name])


def under(state: State, prefix: str) -> State:
    """The part of a state below a name."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
