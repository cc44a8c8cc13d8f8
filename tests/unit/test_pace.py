"""Who was fast is asked, and who was slow is not forgotten."""

from __future__ import annotations

import pytest

from dfka_dist.teachers.pace import Kind, Pace


def heard(*answers: tuple[Kind, int, float]) -> Pace:
    pace = Pace()
    for answer in answers:
        pace.heard(*answer)
    return pace


def test_nothing_is_known_of_a_replica_that_was_not_asked() -> None:
    assert Pace().of("forward") == 0.0


def test_a_pace_is_the_seconds_for_a_row() -> None:
    assert heard(("forward", 10, 2.0)).of("forward") == pytest.approx(0.2)


def test_forward_and_pullback_have_a_pace_each() -> None:
    pace = heard(("forward", 1, 1.0), ("pullback", 1, 3.0))
    assert (pace.of("forward"), pace.of("pullback")) == (1.0, 3.0)


def test_a_slow_first_answer_fades_with_the_answers_behind_it() -> None:
    assert heard(("forward", 1, 100.0), *[("forward", 1, 1.0)] * 10).of("forward") < 1.1


def test_a_replica_that_is_passed_over_is_asked_again_soon() -> None:
    """After a first answer that took four times as long as another replica's."""
    slow, fast = heard(("forward", 1, 4.0)), heard(("forward", 1, 1.0))
    passed = 0
    while slow.of("forward") > fast.of("forward"):
        fast.heard("forward", 1, 1.0)
        slow.passed_over("forward")
        passed += 1
    assert passed == 14
