"""Rates and weights as functions of the step alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfka_dist.config import LossWeights
from dfka_dist.training.schedule import cosine, weights_at

WEIGHTS = LossWeights(one_hot=0.7, adversarial=0.8)


def test_a_rate_begins_at_its_start() -> None:
    assert cosine(0, 100, 0.2, 0.1) == pytest.approx(0.2)


def test_a_rate_is_halfway_in_the_middle() -> None:
    assert cosine(50, 100, 0.2, 0.1) == pytest.approx(0.15)


def test_a_rate_ends_at_its_end() -> None:
    assert cosine(100, 100, 0.2, 0.1) == pytest.approx(0.1)


@given(steps=st.integers(1, 1000), start=st.floats(1e-6, 1), share=st.floats(0, 1))
def test_a_rate_never_rises(steps: int, start: float, share: float) -> None:
    rates = [cosine(step, steps, start, start * share) for step in range(0, steps + 1, 7)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rates))


def test_a_phase_without_steps_has_a_rate() -> None:
    assert cosine(0, 0, 0.2, 0.1) == pytest.approx(0.2)


def test_disagreement_is_off_in_the_first_step() -> None:
    assert weights_at(WEIGHTS, 0, 100).adversarial == 0


def test_disagreement_is_off_in_the_end() -> None:
    assert weights_at(WEIGHTS, 100, 100).adversarial == pytest.approx(0)


def test_disagreement_has_its_whole_weight_at_some_time() -> None:
    assert max(weights_at(WEIGHTS, step, 100).adversarial for step in range(101)) == 0.8


@given(steps=st.integers(1, 500), at=st.floats(0, 1))
def test_disagreement_never_has_more_than_its_weight(steps: int, at: float) -> None:
    assert 0 <= weights_at(WEIGHTS, int(at * steps), steps).adversarial <= 0.8


@given(steps=st.integers(1, 500), at=st.floats(0, 1))
def test_no_other_weight_moves(steps: int, at: float) -> None:
    moved = weights_at(WEIGHTS, int(at * steps), steps)
    assert moved.model_copy(update={"adversarial": 0.8}) == WEIGHTS
