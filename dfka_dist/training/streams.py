"""Random draws as a function of (seed, stream, step, global sample index), the same on any number
of workers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WORDS_PER_COUNT = 4
"""Philox gives four 64-bit words for each value of its counter."""


@dataclass(frozen=True)
class Streams:
    """Counter-based random numbers: a slice of rows costs what the slice is long."""

    seed: int

    def uniform(self, stream: str, step: int, rows: range, width: int) -> Tensor:
        """(len(rows), width) float64 in (0, 1); row i depends on nothing but i, stream, step and
        seed."""
        counts = -(-width // _WORDS_PER_COUNT)
        key = np.random.SeedSequence([self.seed, zlib.crc32(stream.encode()), step]).generate_state(
            2, np.uint64
        )
        bits = np.random.Philox(key=key).advance(rows.start * counts)
        words = bits.random_raw(len(rows) * counts * _WORDS_PER_COUNT).reshape(len(rows), -1)[
            :, :width
        ]
        return torch.from_numpy(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)

    def normal(self, stream: str, step: int, rows: range, width: int) -> Tensor:
        """(len(rows), width) float32, standard normal (Box and Muller)."""
        uniform = self.uniform(stream, step, rows, 2 * width)
        radius = (-2 * uniform[:, :width].log()).sqrt()
        return (radius * (2 * torch.pi * uniform[:, width:]).cos()).float()

    def paired(self, stream: str, step: int, rows: range, width: int) -> Tensor:
        """(len(rows), width) float32 in (0, 1), of which rows 2k and 2k + 1 are the same."""
        pairs = range(rows.start // 2, -(-rows.stop // 2))
        values = self.uniform(stream, step, pairs, width).float()
        return values.repeat_interleave(2, dim=0)[rows.start % 2 :][: len(rows)]

    def label_sets(
        self,
        stream: str,
        step: int,
        rows: range,
        labels: int,
        most: int,
        pools: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """(len(rows), labels) of zeros and ones: 1 to `most` labels an image, all sizes equally
        often.

        Images 2k and 2k + 1 have the same set; its labels are of pool k modulo the number of pools,
        and its first label is that pool's next, so that every batch is balanced. With every step
        all move on by one label: no pair has one label for ever.

        Args:
            pools: labels that may be together, in turn, one that stands there more than once coming
                first as often; without it one pool of all.
        """
        pools = pools or [range(labels)]
        pairs = range(rows.start // 2, -(-rows.stop // 2))
        uniform = self.uniform(stream, step, pairs, labels + 1)
        # The labels' order is random but for its first place; the size says how many of it are
        # taken.
        order = uniform[:, :labels]
        limits = torch.empty(len(pairs), 1)
        for row, pair in enumerate(pairs):
            pool = pools[pair % len(pools)]
            order[row] += torch.ones(labels).index_fill(0, torch.tensor(pool), 0.0)
            order[row, first_label(pair, pools, step)] = -1.0
            limits[row] = min(most, len(set(pool)))
        sizes = 1 + (uniform[:, labels:] * limits).long()
        sets = (order.argsort(dim=1).argsort(dim=1) < sizes).float()
        return sets.repeat_interleave(2, dim=0)[rows.start % 2 :][: len(rows)]


def first_label(pair: int, pools: Sequence[Sequence[int]], step: int = 0) -> int:
    """The label that images 2 * pair and 2 * pair + 1 are surely asked for."""
    pool = pools[pair % len(pools)]
    return pool[(pair // len(pools) + step) % len(pool)]
