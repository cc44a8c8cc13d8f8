"""In which order rows come out of an archive: a function of the sizes of its row groups alone.

Nothing has to be read to know the order, so that every worker follows the same one and keeps no
more than its own rows in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Window:
    """Some row groups whose rows are mixed with each other."""

    groups: list[int]
    order: npt.NDArray[np.int64]
    """Every row of these groups once; rows are numbered through the groups, one after another."""


def windows(sizes: Sequence[int], *, seed: int, most: int) -> Iterator[Window]:
    """Epoch after epoch without end, every row once in each.

    In every epoch the row groups are shuffled, as many as fit are taken together, and their rows
    are mixed.

    Args:
        sizes: rows of each row group, more than none.
        most: rows of a window; a group that is larger comes alone.
    """
    for epoch in itertools.count():
        random = np.random.default_rng([seed, epoch])
        together: list[int] = []
        rows = 0
        for group in random.permutation(len(sizes)).tolist():
            if together and rows + sizes[group] > most:
                yield Window(together, random.permutation(rows))
                together, rows = [], 0
            together.append(group)
            rows += sizes[group]
        yield Window(together, random.permutation(rows))
