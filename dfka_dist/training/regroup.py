"""The trained blocks and filters of a dual generator, and the targets that can be made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.branching import build_target
from dfka_dist.training.checkpoint import Reading, State, Writing, read_json, under, write_json


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

    def add(self, other: DualState) -> None:
        """Have what another has, too."""
        self.blocks |= other.blocks
        self.filters |= other.filters
        self.tails |= other.tails

    def flat(self) -> State:
        """Everything, by names that say what it belongs to."""
        found = {f"block {d}.{k}": v for d, own in self.blocks.items() for k, v in own.items()}
        for (depth, teacher), own in self.filters.items():
            found |= {f"filter {depth} {teacher}.{k}": v for k, v in own.items()}
        for teacher, own in self.tails.items():
            found |= {f"tail {teacher}.{k}": v for k, v in own.items()}
        return found

    @classmethod
    def of_flat(cls, state: State) -> DualState:
        """The inverse of `flat`."""
        dual = cls()
        for part in dict.fromkeys(key.partition(".")[0] for key in state):
            kind, *names = part.split(" ")
            own = under(state, f"{part}.")
            if kind == "block":
                dual.blocks[int(names[0])] = own
            elif kind == "filter":
                dual.filters[int(names[0]), names[1]] = own
            else:
                dual.tails[names[0]] = own
        return dual

    def target(self, design: Architecture, teachers: Teachers) -> TargetNet:
        """Trunk and filters as they were trained, tails as the teachers have them."""
        target = build_target(design, teachers)
        self.load_into(target)
        return target

    def load_into(self, target: TargetNet) -> None:
        """Replace trunk and filters of a target that has its tails."""
        for depth, block in enumerate(target.trunk.blocks, 1):
            block.load_state_dict(self.blocks.get(depth, {}))
        for branch in target.design.branches:
            name = branch.teacher.name
            target.trunk.filters[name].load_state_dict(self.filters[branch.depth, name])
            if name in self.tails:
                target.tails[name].load_state_dict(self.tails[name])


class Candidates:
    """Dual generators at moments of a run, in the order of time; the same on every rank."""

    def __init__(self) -> None:
        self.named: list[tuple[str, DualState]] = []

    def add(self, name: str, dual: DualState) -> None:
        """Another one."""
        self.named.append((name, dual))

    def save(self, writing: Writing, name: str) -> None:
        """See `Held`."""
        if writing.rank == 0:
            for index, (_, dual) in enumerate(self.named):
                writing.outlasting(f"{name}-{index}", dual.flat)
            write_json(writing.under(name) / "names.json", {"names": [n for n, _ in self.named]})

    def restore(self, reading: Reading, name: str) -> None:
        """See `Held`."""
        told = read_json(reading.folder / name / "names.json")
        states = [reading.outlasting(f"{name}-{index}") for index in range(len(told["names"]))]
        self.named = list(zip(told["names"], map(DualState.of_flat, states), strict=True))
