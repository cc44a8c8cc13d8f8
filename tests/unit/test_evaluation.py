"""Scores worked out by hand, on predictions that are written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dfka_dist.data import LabelledImages
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.evaluation import Predict, agreement_and_coverage, evaluate, merge, spearman


def numbered(name: str, labels: list[str], truth: list[list[str]]) -> LabelledImages:
    """Images of one pixel, each holding its own number, so that a prediction can be looked up."""

    def examples() -> Any:
        for number, present in enumerate(truth):
            yield torch.full((1, 1, 1), float(number)), [labels.index(label) for label in present]

    return LabelledImages(name, labels, len(truth), examples)


def lookup(answers: Mapping[str, list[list[float]]]) -> Predict:
    tables = {name: torch.tensor(rows) for name, rows in answers.items()}
    return lambda images: {n: t[images.flatten().long()] for n, t in tables.items()}


# Two teachers; both know "b".
TEACHER_LABELS = {"left": ["a", "b"], "right": ["b", "c"]}
TRUTH = [["a"], ["b"], ["c"], ["b"]]
ASK_TEACHERS = lookup(
    {
        "left": [[0.9, 0.2], [0.1, 0.8], [0.3, 0.1], [0.6, 0.2]],
        "right": [[0.4, 0.0], [0.2, 0.1], [0.1, 0.9], [0.8, 0.3]],
    }
)
# Side by side:  a            b                    c
#   image 0      0.9          (0.2 + 0.4)/2 = 0.3  0.0   -> a, right
#   image 1      0.1          (0.8 + 0.2)/2 = 0.5  0.1   -> b, right
#   image 2      0.3          (0.1 + 0.1)/2 = 0.1  0.9   -> c, right
#   image 3      0.6          (0.2 + 0.8)/2 = 0.5  0.3   -> a, wrong
# Average precision: a 1 (0.9 first); b 1 (images 1, 3 first); c 1. mAP 1, accuracy 3/4.
ASK_TARGET = lookup(
    {
        "left": [[0.2, 0.5], [0.7, 0.6], [0.1, 0.0], [0.4, 0.9]],
        "right": [[0.5, 0.1], [0.6, 0.2], [0.2, 0.3], [0.7, 0.4]],
    }
)
# The target:    a            b     c
#   image 0      0.2          0.5   0.1   -> b, wrong
#   image 1      0.7          0.6   0.2   -> a, wrong
#   image 2      0.1          0.1   0.3   -> c, right
#   image 3      0.4          0.8   0.4   -> b, right
# Average precision: a: ranks 0.7, 0.4, 0.2* -> 1/3; b: 0.8*, 0.6* -> 1; c: 0.4, 0.3* -> 1/2.
# mAP (1/3 + 1 + 1/2) / 3 = 11/18, accuracy 1/2.


def score(
    *data: LabelledImages,
    wanted: list[str],
    names: tuple[str, ...] = ("left", "right"),
    ask_teachers: Predict | None = ASK_TEACHERS,
) -> Any:
    kept = {n: [x for x in own if x in wanted] for n, own in TEACHER_LABELS.items()}
    columns = {n: [TEACHER_LABELS[n].index(x) for x in own] for n, own in kept.items()}

    def ask_target(images: Tensor) -> Mapping[str, Tensor]:
        return {n: rows[:, columns[n]] for n, rows in ASK_TARGET(images).items() if kept[n]}

    branches = {n: own for n, own in kept.items() if own}
    pairs = [(one, names) for one in data]
    return evaluate(pairs, TEACHER_LABELS, branches, wanted, ask_teachers, ask_target, 3)


ALL = numbered("all", ["c", "b", "a"], TRUTH)


def test_without_data_there_is_no_evaluation() -> None:
    assert score(wanted=["a"]) is None


def test_teachers_side_by_side_average_a_label_that_both_know() -> None:
    assert score(ALL, wanted=["a", "b", "c"])["teachers"] == {"mAP": 1.0, "accuracy": 0.75}


def test_target_is_scored_over_all_wanted_labels() -> None:
    found = score(ALL, wanted=["a", "b", "c"])["target"]
    assert found == {"mAP": round(11 / 18, 6), "accuracy": 0.5}


def test_retention_is_target_over_teachers() -> None:
    found = score(ALL, wanted=["a", "b", "c"])["retention"]
    assert found == {"mAP": round(11 / 18, 6), "accuracy": round(0.5 / 0.75, 6)}


def test_every_label_has_its_own_average_precision() -> None:
    found = score(ALL, wanted=["a", "b", "c"])["per_label"]
    assert found["a"] == {"teacher": 1.0, "target": round(1 / 3, 6)}
    assert found["c"] == {"teacher": 1.0, "target": 0.5}


def test_labels_are_reported_in_the_order_the_user_wanted() -> None:
    assert list(score(ALL, wanted=["c", "a", "b"])["per_label"]) == ["c", "a", "b"]


def test_a_customised_subset_ignores_all_other_labels() -> None:
    # Only a and c: images 1 and 3 hold none, so accuracy rests on images 0 (c: 0.1 < a: 0.2) and 2.
    found = score(ALL, wanted=["c", "a"])
    assert found["target"] == {"mAP": round((1 / 3 + 1 / 2) / 2, 6), "accuracy": 1.0}


def test_data_and_number_of_examples_are_named() -> None:
    found = score(ALL, wanted=["a", "b", "c"])
    assert (found["dataset"], found["examples"]) == ("all", 4)


def test_each_teacher_is_compared_on_its_own_labels() -> None:
    # right knows b and c. Teacher alone, b: 0.8*, 0.4, 0.2*, 0.1 -> (1 + 2/3)/2 = 5/6; c: 1.
    # Branch alone, b: 0.7*, 0.6* -> 1; c: 0.4, 0.3* -> 1/2. One true label: images 1, 2, 3; the
    # teacher is right on each; so is the branch.
    found = score(ALL, wanted=["a", "b", "c"])["per_teacher"]["right"]
    assert found == {
        "dataset": "all",
        "examples": 4,
        "teacher": {"mAP": round((5 / 6 + 1) / 2, 6), "accuracy": 1.0},
        "target": {"mAP": 0.75, "accuracy": 1.0},
        "retention": {"mAP": round(0.75 / (11 / 12), 6), "accuracy": 1.0},
    }


def test_pooled_figures_are_null_where_no_data_set_covers_all_labels() -> None:
    found = score(numbered("part", ["a", "b"], [["a"], ["b"]]), wanted=["a", "b", "c"])
    pooled = ("dataset", "examples", "teachers", "target", "retention", "per_label")
    assert [found[key] for key in pooled] == [None] * 6


def test_pooled_figures_are_null_where_the_data_are_not_for_all_teachers() -> None:
    assert score(ALL, wanted=["a", "b", "c"], names=("left",))["dataset"] is None


def test_pooled_figures_come_from_the_data_set_that_covers_all_labels() -> None:
    part = numbered("part", ["a"], [["a"], []])
    assert score(part, ALL, wanted=["a", "b", "c"])["dataset"] == "all"


def test_a_teacher_is_scored_on_the_data_set_that_covers_most_of_its_labels() -> None:
    few, many = numbered("few", ["b"], [["b"]]), numbered("many", ["b", "c"], [["b"], ["c"]])
    found = score(few, many, wanted=["a", "b", "c"])["per_teacher"]
    assert found["right"]["dataset"] == "many"


def test_a_teacher_without_data_is_left_out() -> None:
    found = score(numbered("only_a", ["a"], [["a"], []]), wanted=["a", "b", "c"])
    assert list(found["per_teacher"]) == ["left"]


def test_a_teacher_of_which_nothing_is_wanted_is_left_out() -> None:
    assert list(score(ALL, wanted=["a"])["per_teacher"]) == ["left"]


def test_a_label_without_a_positive_example_does_not_count_in_the_mean() -> None:
    # Without image 2 nothing is a c. Target: a 0.7, 0.2* -> 1/2; b 0.6* first -> 1.
    seen = numbered("no_c", ["a", "b", "c"], [["a"], ["b"]])
    found = score(seen, wanted=["a", "b", "c"])
    assert found["target"]["mAP"] == 0.75
    assert found["per_label"]["c"] == {"teacher": None, "target": None}


def test_accuracy_leaves_out_images_with_several_labels() -> None:
    seen = numbered("several", ["a", "b", "c"], [["a"], ["b"], ["c"], ["a", "b"]])
    assert score(seen, wanted=["a", "b", "c"])["teachers"]["accuracy"] == 1.0


def test_accuracy_is_null_where_no_image_has_exactly_one_label() -> None:
    found = score(numbered("pairs", ["a", "b", "c"], [["a", "b"]]), wanted=["a", "b", "c"])
    assert [found[key]["accuracy"] for key in ("teachers", "target", "retention")] == [None] * 3


def test_without_teachers_the_target_is_scored_alone() -> None:
    beside, alone = (
        score(ALL, wanted=["a", "b", "c"], ask_teachers=ask) for ask in (ASK_TEACHERS, None)
    )
    assert alone["teachers"] is None and alone["retention"] is None
    for key in ("dataset", "examples", "target"):
        assert alone[key] == beside[key]
    for label, row in beside["per_label"].items():
        assert alone["per_label"][label] == row | {"teacher": None}
    for name, row in beside["per_teacher"].items():
        assert alone["per_teacher"][name] == row | {"teacher": None, "retention": None}


def test_each_data_set_is_read_once() -> None:
    seen: list[int] = []

    def ask_teachers(images: Tensor) -> Mapping[str, Tensor]:
        seen.extend(images.flatten().int().tolist())
        return ASK_TEACHERS(images)

    pairs = [(ALL, ["left", "right"])]
    evaluate(pairs, TEACHER_LABELS, TEACHER_LABELS, ["a", "b"], ask_teachers, ASK_TARGET, 3)
    assert seen == [0, 1, 2, 3]


def test_predictions_that_are_not_finite_end_the_run() -> None:
    broken = lookup({"left": [[0.5, float("nan")]]})
    pairs = [(numbered("one", ["a"], [["a"]]), ["left"])]
    with pytest.raises(RunFailed, match="left"):
        evaluate(pairs, TEACHER_LABELS, TEACHER_LABELS, ["a"], ASK_TEACHERS, broken)


def test_merge_refuses_a_label_that_nobody_knows() -> None:
    with pytest.raises(InputError, match="'z'"):
        merge({"left": torch.zeros(1, 2)}, TEACHER_LABELS, ["z"])


# Probe images: the teachers light a, a, b, and the last one nobody lights.
PROBE_TEACHERS = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.2, 0.7], [0.4, 0.3]])
PROBE_TARGET = torch.tensor([[0.6, 0.1], [0.2, 0.3], [0.2, 0.7], [0.4, 0.3]])
# Features on a line: mean 4, distances 4, 2, 2, 4, mean 3. The two of a: mean 1, distances 1.
PROBE_FEATURES = torch.tensor([[0.0], [2.0], [6.0], [8.0]])


def probe() -> Any:
    return agreement_and_coverage(PROBE_TEACHERS, PROBE_TARGET, PROBE_FEATURES, ["a", "b"])


def test_agreement_is_the_share_of_images_with_the_same_top_label() -> None:
    assert probe()["agreement"] == 0.75


def test_two_that_see_nothing_agree_where_an_image_may_show_nothing() -> None:
    theirs = torch.tensor([[0.1, 0.2], [0.1, 0.9], [0.4, 0.1], [0.3, 0.2]])
    own = torch.tensor([[0.3, 0.1], [0.2, 0.8], [0.6, 0.1], [0.1, 0.7]])
    found = agreement_and_coverage(theirs, own, torch.ones(4, 1), ["a", "b"], nothing=True)
    assert found["agreement"] == 0.5


def test_one_label_is_agreed_on_by_decisions() -> None:
    theirs, own = torch.tensor([[0.1], [0.9]]), torch.tensor([[0.8], [0.7]])
    found = agreement_and_coverage(theirs, own, torch.ones(2, 1), ["a"], nothing=True)
    assert found["agreement"] == 0.5


def test_share_counts_only_images_that_light_the_label() -> None:
    assert {label: found["share"] for label, found in probe()["coverage"].items()} == {
        "a": 0.5,
        "b": 0.25,
    }


def test_spread_is_relative_to_the_spread_of_all_images() -> None:
    assert probe()["coverage"]["a"]["spread"] == round(1 / 3, 6)


def test_a_single_image_has_no_spread() -> None:
    assert probe()["coverage"]["b"]["spread"] == 0.0


def test_identical_images_have_no_spread() -> None:
    same = torch.ones(4, 1)
    found = agreement_and_coverage(PROBE_TEACHERS, PROBE_TARGET, same, ["a", "b"])
    assert found["coverage"]["a"]["spread"] == 0.0


@pytest.mark.parametrize(
    ("scores", "rho"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], -1.0), ([1, 2, 4, 3], 0.8)]
)
def test_a_rank_correlation_knows_only_ranks(scores: list[float], rho: float) -> None:
    assert spearman([0.1, 0.11, 0.5, 0.9], scores) == pytest.approx(rho)
