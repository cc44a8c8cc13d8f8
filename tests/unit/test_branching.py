"""Regrouping: which branches a target has, where they leave the trunk, whose weights they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import Architecture
from dfka_dist.teachers.interface import Question
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching, build_target

MakeConfig = Callable[..., RunConfig]
TRUNK = {"arguments": {"widths": [4, 6, 8]}}


@pytest.fixture(scope="module")
def specs(make_teacher: Callable[..., TeacherSpec]) -> list[TeacherSpec]:
    return [make_teacher("one", ["a", "b"]), make_teacher("two", ["b", "c", "d"])]


@pytest.fixture(scope="module")
def teachers(specs: list[TeacherSpec]) -> LocalTeachers:
    return LocalTeachers(load_teachers(specs, read_all_weights(specs)))


@pytest.fixture
def designed(
    specs: list[TeacherSpec], teachers: LocalTeachers, make_config: MakeConfig
) -> Callable[..., Architecture]:
    return lambda **target: Branching(
        make_config(specs, target=TRUNK | target), teachers.descriptions
    ).design()


def test_branches_leave_behind_the_last_block_unless_told_otherwise(
    designed: Callable[..., Architecture],
) -> None:
    assert [branch.depth for branch in designed().branches] == [3, 3]


def test_branches_leave_where_they_are_told(designed: Callable[..., Architecture]) -> None:
    branches = designed(branch=2).branches
    assert [(branch.depth, branch.shape) for branch in branches] == [(2, (6, 4, 4))] * 2


def test_branches_keep_the_wanted_labels_in_their_teachers_order(
    designed: Callable[..., Architecture],
) -> None:
    kept = {b.teacher.name: b.labels for b in designed(labels=["d", "b"]).branches}
    assert kept == {"one": ["b"], "two": ["b", "d"]}


def test_a_teacher_none_of_whose_labels_is_wanted_has_no_branch(
    designed: Callable[..., Architecture],
) -> None:
    names = [branch.teacher.name for branch in designed(labels=["d", "c"]).branches]
    assert names == ["two"]


def test_a_design_names_no_file(designed: Callable[..., Architecture]) -> None:
    assert [branch.teacher.weights for branch in designed().branches] == [None, None]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tails_are_the_teachers_own(
    designed: Callable[..., Architecture], teachers: LocalTeachers, depth: int
) -> None:
    """Fed with a teacher's own features, a tail says what the teacher says."""
    target = build_target(designed(branch=depth), teachers).eval()
    shape = teachers.descriptions["two"].shapes[depth]
    features = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    asked = teachers.forward(Question(features, ("two",), depth=depth)).result()["two"].logits
    assert asked is not None
    assert torch.equal(target.tails["two"](features), asked)


def test_tails_are_frozen(designed: Callable[..., Architecture], teachers: LocalTeachers) -> None:
    target = build_target(designed(), teachers)
    assert not any(parameter.requires_grad for parameter in target.tails.parameters())


def test_the_trunk_is_not(designed: Callable[..., Architecture], teachers: LocalTeachers) -> None:
    target = build_target(designed(), teachers)
    assert all(parameter.requires_grad for parameter in target.trunk.parameters())
