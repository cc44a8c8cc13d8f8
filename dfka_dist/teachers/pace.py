"""How fast a replica has been, as one client sees it."""

from __future__ import annotations

from typing import Literal

Kind = Literal["forward", "pullback", "tail"]
NEW = 0.5
"""How much of the mean the newest answer is."""
FORGETTING = 0.9
"""What is left of a mean each time that another replica is asked for it: so also one whose first
answers were slow is asked again."""


class Pace:
    """Decayed means of the seconds that an answer took for each row, by kind."""

    def __init__(self) -> None:
        self._means: dict[Kind, float] = {}

    def of(self, kind: Kind) -> float:
        """Seconds for a row; 0 where nothing is known."""
        return self._means.get(kind, 0.0)

    def heard(self, kind: Kind, rows: int, seconds: float) -> None:
        """An answer came."""
        each = seconds / max(1, rows)
        before = self._means.get(kind, each)
        self._means[kind] = before + NEW * (each - before)

    def passed_over(self, kind: Kind) -> None:
        """Another replica, which had as much to do, was asked for being faster."""
        if kind in self._means:
            self._means[kind] *= FORGETTING
