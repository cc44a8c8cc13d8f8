"""Regrouping: which branches a target has, where they leave the trunk, whose weights they are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import Architecture, TargetNet
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


# where branches shall leave

DEPTHS = (1, 2, 3)
Losses = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def uneven(make_teacher: Callable[..., TeacherSpec]) -> LocalTeachers:
    """Teachers of three blocks and of two, the second in another format."""
    other: dict[str, Any] = {"channels": 3, "size": 12, "widths": [5, 7]}
    specs = [make_teacher("one", ["a", "b"]), make_teacher("two", ["c", "d", "e"], **other)]
    return LocalTeachers(load_teachers(specs, read_all_weights(specs)))


MakeBranching = Callable[..., Branching]


@pytest.fixture(scope="module")
def make_branching(uneven: LocalTeachers, make_config: MakeConfig) -> MakeBranching:
    """A factory of branchings on a trunk of three blocks: `make_branching(branch="best")`."""
    specs = [own.spec for own in uneven.descriptions.values()]

    def make(recipe: str = "joint", **target: Any) -> Branching:
        training = {"recipe": recipe, "branch_steps": 1}
        config = make_config(specs, target=TRUNK | target, training=training)
        return Branching(config, uneven.descriptions)

    return make


def ways() -> list[dict[str, int]]:
    """Depths at which two branches can leave a trunk of three blocks."""
    return [{"one": one, "two": two} for one, two in product(DEPTHS, DEPTHS)]


@pytest.fixture(scope="module")
def parameters(make_branching: MakeBranching) -> list[int]:
    """Of a target for each of the `ways`, counted in the target itself."""
    branching = make_branching()
    return [TargetNet(branching.design(way)).parameter_count() for way in ways()]


def test_parameters_of_every_branching_are_those_of_its_target(
    make_branching: MakeBranching, parameters: list[int]
) -> None:
    branching = make_branching()
    assert [branching.parameters(way) for way in ways()] == parameters


def test_parameters_of_the_papers_recipe_are_those_of_its_target(
    make_branching: MakeBranching,
) -> None:
    """Its filters short of the last block have no convolution where shapes are equal."""
    branching, way = make_branching("paper"), {"one": 1, "two": 2}
    assert branching.parameters(way) == TargetNet(branching.design(way)).parameter_count()


def test_teachers_of_other_depths_go_on_where_they_are_as_deep(
    make_branching: MakeBranching,
) -> None:
    branching = make_branching()
    found = {name: [branching.entry(name, depth) for depth in DEPTHS] for name in ("one", "two")}
    assert found == {"one": [1, 2, 3], "two": [1, 1, 2]}


def test_a_branch_is_shaped_as_its_teacher_is_where_it_goes_on(
    make_branching: MakeBranching, uneven: LocalTeachers
) -> None:
    own = uneven.descriptions["two"]
    for depth in DEPTHS:
        (branch,) = [
            branch
            for branch in make_branching(branch=depth).design().branches
            if branch.teacher.name == "two"
        ]
        assert branch.shape == own.shapes[branch.entry]


def test_depths_may_be_given_by_teacher_and_are_last_elsewhere(
    make_branching: MakeBranching,
) -> None:
    assert make_branching(branch={"two": 1}).asked == {"one": 3, "two": 1}


@pytest.mark.parametrize("branch", [4, {"one": 4}])
def test_depths_that_the_trunk_does_not_have_are_refused(
    make_branching: MakeBranching, branch: object
) -> None:
    with pytest.raises(InputError, match=r"target\.branch: is 4 for one \(1 to 3, "):
        make_branching(branch=branch)


@pytest.mark.parametrize("wanted", [{"branch": "best"}, {"max_parameters": 10**9}])
def test_depths_that_are_chosen_later_are_not_asked_for(
    make_branching: MakeBranching, wanted: dict[str, Any]
) -> None:
    assert make_branching(**wanted).asked is None


DUAL_LOSSES = st.fixed_dictionaries(
    {
        name: st.fixed_dictionaries({depth: st.sampled_from(range(100)) for depth in DEPTHS})
        for name in ("one", "two")
    }
)
"""Whole numbers, whose sums are exact; some of them equal."""


@settings(max_examples=60, deadline=None)
@given(losses=DUAL_LOSSES)
def test_every_teacher_leaves_where_its_dual_loss_is_least(
    make_branching: MakeBranching, losses: Losses
) -> None:
    chosen = make_branching(branch="best").choose(losses)
    assert {n: losses[n][chosen[n]] for n in losses} == {n: min(losses[n].values()) for n in losses}


@settings(max_examples=60, deadline=None)
@given(losses=DUAL_LOSSES, data=st.data())
def test_under_a_budget_the_least_sum_of_losses_that_fits_is_chosen(
    make_branching: MakeBranching, parameters: list[int], losses: Losses, data: st.DataObject
) -> None:
    budget = data.draw(st.sampled_from(parameters)) + data.draw(st.sampled_from([0, 1]))
    chosen = make_branching(max_parameters=budget).choose(losses)
    every = [
        (sum(losses[name][depth] for name, depth in way.items()), size)
        for way, size in zip(ways(), parameters, strict=True)
        if size <= budget
    ]
    found = sum(losses[name][depth] for name, depth in chosen.items())
    assert (found, parameters[ways().index(dict(chosen))]) == min(every)


def test_a_budget_that_nothing_meets_is_refused_with_the_least_that_would(
    make_branching: MakeBranching, parameters: list[int]
) -> None:
    least = min(parameters)
    with pytest.raises(InputError) as caught:
        make_branching(max_parameters=least - 1)
    assert (caught.value.key, caught.value.remedy) == ("target.max_parameters", f"{least} or more")


def test_the_least_budget_of_all_is_met(
    make_branching: MakeBranching, parameters: list[int]
) -> None:
    even = {name: dict.fromkeys(DEPTHS, 1.0) for name in ("one", "two")}
    branching = make_branching(max_parameters=min(parameters))
    assert branching.parameters(branching.choose(even)) == min(parameters)


@pytest.mark.parametrize("depth", DEPTHS)
def test_filters_have_their_convolution_where_the_trunk_did_not_learn_to_do_without(
    make_branching: MakeBranching, depth: int
) -> None:
    found = [make_branching(recipe).adapts(depth) for recipe in ("joint", "paper")]
    assert found == [depth < 3, False]
