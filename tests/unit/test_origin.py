"""Where a target comes from; `test_report.py` has what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from dfka_dist.origin import NO_DATA, OTHERS_DATA, PARTIAL_DATA, unscored


@pytest.mark.parametrize(
    ("evaluation", "has_data", "why"),
    [
        (None, False, NO_DATA),
        (None, True, OTHERS_DATA),
        ({"dataset": None}, True, PARTIAL_DATA),
        ({"dataset": "shelter"}, True, None),
    ],
)
def test_a_run_without_a_score_says_why(
    evaluation: dict[str, Any] | None, has_data: bool, why: str | None
) -> None:
    assert unscored(evaluation, has_data) == why
