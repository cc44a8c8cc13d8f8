"""Lines of the report: points in a box of 100 by 100."""

from __future__ import annotations

from typing import Any

import pytest

from dfka_dist.curves import depth_curve

DEPTHS = (1, 2, 3)


def network(name: str, depth: int, **scores: Any) -> dict[str, Any]:
    """A branch at a depth; the earlier, the more parameters."""
    own = {"retention": {"accuracy": 1 - 0.1 * depth, "mAP": 0.5}, "per_teacher": None} | scores
    points = {"one": depth, "two": depth}
    return {
        "name": name,
        "branch_points": points,
        "parameters": 1000 - 100 * depth,
        "agreement": 0.9 - 0.01 * depth,
        **own,
    }


def result(**scores: Any) -> dict[str, Any]:
    """A run whose result has its branches at the last depth."""
    chosen = network("fine-tuned", 3, **scores)
    return {
        "depths": [network(f"depth {depth}", depth, **scores) for depth in (1, 2)],
        "candidates": [{k: v for k, v in chosen.items() if k != "branch_points"}],
        "chosen": "fine-tuned",
        "phases": [{"name": "branches", "steps": 5}, {"name": "fine_tune", "steps": 0}],
        "target": {"branch_points": chosen["branch_points"]},
    }


def points(made: dict[str, Any] | None) -> list[dict[str, Any]]:
    assert made is not None
    found: list[dict[str, Any]] = made["points"]
    return found


def test_every_depth_has_its_point_with_fewer_parameters_first() -> None:
    found = points(depth_curve(result()))
    assert [point["name"] for point in found] == ["3", "2", "1"]
    assert [point["parameters"] for point in found] == [700, 800, 900]


def test_what_was_done_for_other_depths_is_told() -> None:
    found = depth_curve(result())
    assert found is not None and (found["learned"], found["tuned"]) == (True, False)


@pytest.mark.parametrize(("chosen", "but"), [("fine-tuned", False), ("rehearsal 5", True)])
def test_a_result_that_was_not_fine_tuned_is_told_apart(chosen: str, but: bool) -> None:
    made = result()
    made["chosen"] = made["candidates"][0]["name"] = chosen
    found = depth_curve(made)
    assert found is not None and found["but"] is but


def test_the_result_is_marked() -> None:
    assert [point["chosen"] for point in points(depth_curve(result()))] == [True, False, False]


def test_points_fill_the_box() -> None:
    found = points(depth_curve(result()))
    assert [point["x"] for point in found] == pytest.approx([0, 50, 100])
    assert [point["y"] for point in found] == pytest.approx([100, 50, 0])


def test_branches_at_different_depths_are_named_by_each() -> None:
    made = result()
    made["depths"][0]["branch_points"] = {"one": 1, "two": 2}
    assert "1, 2" in [point["name"] for point in points(depth_curve(made))]


@pytest.mark.parametrize(
    ("scores", "measure"),
    [
        ({}, "top-1 retention"),
        ({"retention": {"accuracy": None, "mAP": 0.5}}, "mAP retention"),
        ({"retention": None}, "agreement"),
        (
            {"retention": None, "per_teacher": {"one": {"accuracy": 0.9, "mAP": 0.8}}},
            "mean retention of the teachers' own tasks",
        ),
    ],
)
def test_the_first_score_that_all_have_is_shown(scores: dict[str, Any], measure: str) -> None:
    made = depth_curve(result(**scores))
    assert made is not None and made["measure"] == measure


def test_a_run_with_one_target_has_no_curve() -> None:
    assert depth_curve(result() | {"depths": []}) is None
