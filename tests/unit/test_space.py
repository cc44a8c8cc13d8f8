"""What a sweep looks for: which keys, which values, which points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.tuning.space import Space

MakeSpace = Callable[..., Space]
RANGE = {"losses.batch_norm": {"log": [0.1, 100]}}


@pytest.fixture(scope="module")
def make_space(
    make_config: Callable[..., RunConfig], make_teacher: Callable[..., TeacherSpec]
) -> MakeSpace:
    """A factory of spaces: `make_space({key: range}, algorithm="grid")`."""
    teachers = [make_teacher("one", ["a", "b"])]

    def make(space: dict[str, Any], training: dict[str, Any] | None = None, **more: Any) -> Space:
        own = {"search": {"space": space, **more}, "training": training or {}}
        return Space(make_config(teachers, **own))

    return make


def test_the_runs_own_values_are_a_point(make_space: MakeSpace) -> None:
    assert make_space(RANGE | {"training.steps": {"linear": [1, 9]}}).own == {
        "losses.batch_norm": 10.0,
        "training.steps": 400,
    }


def test_a_trial_has_what_all_trials_have_and_keeps_nothing(make_space: MakeSpace) -> None:
    space = make_space(RANGE, trial={"training.steps": 7})
    trial = space.trial({"losses.batch_norm": 2.0})
    assert (trial.losses.batch_norm, trial.training.steps) == (2.0, 7)
    assert trial.training.checkpoint.every == 0 and trial.search is None


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({}, 0),
        ({"trial": {"training.branch_steps": 5}}, 5),
        ({"trial": {"target.branch": "best"}}, 200),
        ({"trial": {"target.max_parameters": 10**9}}, 200),
    ],
)
def test_a_trial_trains_no_depths_that_nobody_compares(
    make_space: MakeSpace, more: dict[str, Any], steps: int
) -> None:
    space = make_space(RANGE, training={"branch_steps": 200}, **more)
    assert space.trial(space.own).training.branch_steps == steps
    assert space.run(space.own).training.branch_steps == 200


def test_a_grid_takes_no_number_of_trials(make_space: MakeSpace) -> None:
    axes = {"losses.batch_norm": {"choices": [1.0, 2.0]}}
    with pytest.raises(InputError, match="search: trials are given for a grid"):
        make_space(axes, algorithm="grid", trials=3)


def test_the_run_of_a_point_is_the_whole_run(make_space: MakeSpace) -> None:
    run = make_space(RANGE, trial={"training.steps": 7}).run({"losses.batch_norm": 2.0})
    assert (run.losses.batch_norm, run.training.steps, run.search) == (2.0, 400, None)


def test_neither_trial_nor_run_writes_to_the_archive_of_the_run_as_it_is(
    make_space: MakeSpace, tmp_path: Path
) -> None:
    space = make_space(RANGE, training={"archive": str(tmp_path)})
    made = (space.run(space.own), space.trial(space.own))
    assert [each.training.archive for each in made] == [None, None]


def test_drawn_points_lie_within_their_ranges(make_space: MakeSpace) -> None:
    space = make_space(
        {
            "losses.batch_norm": {"log": [0.1, 1000]},
            "losses.adversarial": {"linear": [0.2, 0.4]},
            "training.dual_steps": {"linear": [2, 4]},
            "training.sampled_labels": {"choices": [True, False]},
        }
    )
    draws = space.draws()
    points = [next(draws) for _ in range(200)]
    ranges = {key: [point[key] for point in points] for key in space.spec.space}
    assert all(0.1 <= value <= 1000 for value in ranges["losses.batch_norm"])
    assert all(0.2 <= value <= 0.4 for value in ranges["losses.adversarial"])
    assert {*ranges["training.dual_steps"]} == {2, 3, 4}
    assert {*ranges["training.sampled_labels"]} == {True, False}


def test_on_a_log_range_every_factor_counts_alike(make_space: MakeSpace) -> None:
    draws = make_space({"losses.batch_norm": {"log": [0.01, 100]}}).draws()
    below = sum(next(draws)["losses.batch_norm"] < 1 for _ in range(400))
    assert 150 < below < 250


def test_the_same_points_are_drawn_every_time(make_space: MakeSpace) -> None:
    space = make_space(RANGE)
    assert next(space.draws()) == next(space.draws())


def test_a_grid_has_every_point(make_space: MakeSpace) -> None:
    axes = {
        "losses.diversity": {"choices": [0.0, 4.0]},
        "losses.adversarial": {"choices": [0.1, 0.2, 0.3]},
    }
    grid = make_space(axes, algorithm="grid").grid()
    assert len(grid) == 6 and {"losses.diversity": 4.0, "losses.adversarial": 0.3} in grid


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (
            {"losses.batchnorm": {"log": [1, 2]}},
            "search.space.losses.batchnorm: unknown key (did you mean 'batch_norm'?)",
        ),
        (
            {"training.recipe": {"linear": [1, 2]}},
            "search.space.training.recipe: 'joint' is no number (choices for it)",
        ),
        (
            {"training.sampled_labels": {"linear": [0, 1]}},
            "search.space.training.sampled_labels: True is no number (choices for it)",
        ),
        (
            {"losses": {"choices": [1]}},
            "search.space.losses: is a section (a key with one value)",
        ),
        (
            {"losses.batch_norm": {"linear": [2, 1]}},
            "search.space.losses.batch_norm: from 2 to 1 is empty (low before high)",
        ),
        (
            {"losses.batch_norm": {"log": [0, 1]}},
            "search.space.losses.batch_norm: log begins at 0 (more than 0, or linear)",
        ),
        (
            {"losses.batch_norm": {"log": [1, 2], "choices": [1]}},
            "search.space.losses.batch_norm: is no range "
            "(one of linear: [LOW, HIGH], log: [...], choices: [...])",
        ),
        (
            {"losses.adversarial": {"linear": [-1, 1]}},
            "search.space.losses.adversarial: -1 is none of its values: ",
        ),
        (
            {"training.recipe": {"choices": ["joint", "jiont"]}},
            "search.space.training.recipe: 'jiont' is none of its values: ",
        ),
        *(
            (
                {key: {"linear": [0, 1]}},
                f"search.space.{key}: {said} is the same for all trials "
                "(a key of losses, training or generator)",
            )
            for key, said in (
                ("teachers.0.labels", "teachers"),
                ("serving.cpus", "serving"),
                ("run.seed", "run"),
                ("evaluations.digits", "evaluations"),
                ("target.labels", "target.labels"),
                ("training.archive", "training.archive"),
                ("training.workers", "training.workers"),
                ("training.checkpoint.every", "training.checkpoint.every"),
            )
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(
    make_space: MakeSpace, space: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError) as refusal:
        make_space(space)
    assert str(refusal.value).startswith(line)


def test_a_grid_without_choices_is_refused(make_space: MakeSpace) -> None:
    with pytest.raises(InputError, match=r"search.algorithm: a grid has no ranges"):
        make_space(RANGE, algorithm="grid")


def test_a_value_that_only_trials_could_have_is_refused(make_space: MakeSpace) -> None:
    space = {"target.branch": {"choices": ["last", "best"]}}
    trial = {"training.branch_steps": 100}
    line = r"^search\.space\.target\.branch: 'best' is none of its values: training.branch_steps "
    with pytest.raises(InputError, match=line):
        make_space(space, training={"branch_steps": 0}, trial=trial)


APART = {"training.batch_size": {"choices": [12, 8]}, "training.fresh_every": {"choices": [1, 3]}}
"""8 and 3 do not go together."""


def test_a_grid_with_a_point_that_cannot_be_a_run_is_refused(make_space: MakeSpace) -> None:
    line = r"^search\.space: training\.batch_size 8, training\.fresh_every 3 cannot be a run: "
    with pytest.raises(InputError, match=line):
        make_space(APART, training={"batch_size": 12}, algorithm="grid")


def test_pilots_can_be_runs(make_space: MakeSpace) -> None:
    space = make_space(APART, training={"batch_size": 12, "fresh_every": 1}, pilots=4)
    assert len(space.pilots()) == 3
    with pytest.raises(InputError, match=r"training\.batch_size: 8 does not divide"):
        space.trial({"training.batch_size": 8, "training.fresh_every": 3})


def test_what_all_trials_have_must_be_of_the_run(make_space: MakeSpace) -> None:
    with pytest.raises(InputError, match=r"search.trial.training.step: unknown key"):
        make_space(RANGE, trial={"training.step": 7})


@pytest.mark.parametrize("key", ["training", "losses", "generator"])
def test_a_whole_section_is_not_what_all_trials_have(make_space: MakeSpace, key: str) -> None:
    line = f"search.trial.{key}: is a section (its keys one by one, dotted: {key}.KEY: VALUE)"
    with pytest.raises(InputError) as refusal:
        make_space(RANGE, trial={key: {}})
    assert str(refusal.value) == line


def test_trials_may_have_a_value_that_is_a_mapping(make_space: MakeSpace) -> None:
    trial = {"target.arguments": {"widths": [2, 3, 4]}, "training.steps": 7}
    space = make_space(RANGE, trial=trial)
    for _ in range(2):
        assert space.trial(space.own).target.arguments == {"widths": [2, 3, 4]}
    assert space.spec.trial == trial


@pytest.mark.parametrize(
    ("budget", "most"),
    [({}, 20), ({"trials": 7}, 7), ({"seconds": 9.0}, None), ({"seconds": 9.0, "trials": 7}, 7)],
)
def test_a_budget_is_in_trials_or_seconds_or_both(
    make_space: MakeSpace, budget: dict[str, Any], most: int | None
) -> None:
    assert make_space(RANGE, **budget).spec.most == most


def test_fewer_trials_than_pilots_are_refused(make_space: MakeSpace) -> None:
    with pytest.raises(InputError, match=r"2 trials are fewer than 3 pilots \(more\)"):
        make_space(RANGE, trials=2)


def test_pilots_are_the_runs_own_values_and_others_each_once(make_space: MakeSpace) -> None:
    space = make_space({"losses.group": {"choices": [0.0, 1.0, 1.0]}}, pilots=5)
    assert space.pilots() == [{"losses.group": 0.0}, {"losses.group": 1.0}]


def test_a_run_without_a_search_has_no_space(
    make_config: Callable[..., RunConfig], make_teacher: Callable[..., TeacherSpec]
) -> None:
    with pytest.raises(InputError, match="search: is missing"):
        Space(make_config([make_teacher("one", ["a", "b"])]))
