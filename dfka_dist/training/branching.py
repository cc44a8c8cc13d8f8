"""Regrouping: where each teacher's branch leaves the trunk, and the target that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfka_dist.config import RunConfig
from dfka_dist.models.preprocessing import common_input
from dfka_dist.models.target import Architecture, BranchPoint, TargetNet, version
from dfka_dist.teachers.interface import TeacherDescription, Teachers


def design_target(
    config: RunConfig, descriptions: Mapping[str, TeacherDescription]
) -> Architecture:
    """The target that the configuration asks for; branches at depth B unless it says otherwise.

    Teachers none of whose labels are wanted have no branch.
    """
    wanted = config.labels
    branches = [
        _branch(description, wanted, config.target.branch_depth)
        for description in descriptions.values()
    ]
    return Architecture(
        dfka_dist=version(),
        labels=wanted,
        input=common_input([description.spec.input for description in descriptions.values()]),
        backbone=config.target.backbone,
        arguments=config.target.arguments,
        branches=[branch for branch in branches if branch.labels],
    )


def build_target(design: Architecture, teachers: Teachers) -> TargetNet:
    """A target with a trunk of random weights and the teachers' own tails, which are frozen."""
    target = TargetNet(design)
    for branch in design.branches:
        name = branch.teacher.name
        tail = target.tails[name]
        tail.load_state_dict(teachers.tail(name, branch.depth))
        tail.requires_grad_(False)
    return target


def _branch(
    description: TeacherDescription, wanted: Sequence[str], depth: int | None
) -> BranchPoint:
    depth = depth or description.depth
    return BranchPoint(
        teacher=description.spec.model_copy(update={"weights": None}),
        depth=depth,
        shape=description.shapes[depth],
        labels=[label for label in description.spec.labels if label in wanted],
    )
