"""Remembered images for the student, altered on the way, so that it sees more than was made.

A generator makes few kinds of image for a label, and a student learns them by heart. Between and
around them it is taught by asking the teachers again: the answers, not the labels, say what an
altered image is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from dfka_dist.teachers.interface import Pending
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.panel import Panel
from dfka_dist.training.streams import Streams

GRID = 4
"""Points along each side of a random map, between which it is smooth."""
DRAWS = 6 + GRID**2
"""Random numbers that altering an image takes."""


@dataclass(frozen=True)
class Rehearsal:
    """Draws from a memory, and alters what it drew.

    Args:
        move: see `moved`.
        mix: share of images that are mixed with another.
    """

    memory: SampleMemory
    panel: Panel
    streams: Streams
    move: float
    mix: float

    def ask(self, streams: Sequence[str], step: int, stride: int = 1) -> Pending[list[Labelled]]:
        """A batch for each stream, a function of stream and step alone, all asked about at once;
        none where nothing is remembered.

        Args:
            stride: every how-manyth column has an image; the next stream begins a column earlier.
        """
        if not len(self.memory):
            return _Known([])
        drawn = [self.memory.draw(s, step, turn, stride) for turn, s in enumerate(streams)]
        if not (self.move or self.mix):
            return _Known(drawn)
        images = [
            self._altered(part.images, s, step, turn, stride)
            for turn, (s, part) in enumerate(zip(streams, drawn, strict=True))
        ]
        homes = torch.cat([part.homes for part in drawn])
        pending = self.panel.labelled(torch.cat(images), homes)
        return _Asked(pending, [len(part) for part in images])

    def _altered(self, images: Tensor, stream: str, step: int, turn: int, stride: int) -> Tensor:
        every = self.streams.uniform(f"altered.{stream}", step, self.memory.columns, DRAWS)
        chance = every[self.memory.every(turn, stride)].to(images)
        if self.mix:
            # of the same column: nobody else's image is needed, and it has the same home
            others = self.memory.draw(f"other.{stream}", step, turn, stride).images
            images = mixed(images, others, chance[:, 4:], self.mix)
        return moved(images, chance[:, :4], self.move) if self.move else images


@dataclass(frozen=True)
class _Known:
    """Batches whose answers are remembered."""

    parts: list[Labelled]

    def result(self) -> list[Labelled]:
        """At once."""
        return self.parts


class _Asked:
    """Batches whose answers are on their way, all together."""

    def __init__(self, pending: Pending[Labelled], lengths: Sequence[int]) -> None:
        self._pending, self._lengths = pending, lengths
        self._parts: list[Labelled] | None = None

    def result(self) -> list[Labelled]:
        """Wait for the answers; they may be called for twice."""
        if self._parts is None:
            whole, ends = self._pending.result(), list(accumulate(self._lengths))
            starts = [0, *ends]
            self._parts = [whole.rows(a, b) for a, b in zip(starts, ends, strict=False)]
        return self._parts


def mixed(images: Tensor, others: Tensor, chance: Tensor, share: float) -> Tensor:
    """A share of images (N, C, H, W) mixed with others: half of these by one weight for the whole
    picture, half by a smooth random map.

    Args:
        chance: (N, DRAWS - 4), uniform in (0, 1).
    """
    grid = chance[:, 2:].reshape(-1, 1, GRID, GRID)
    size = images.shape[2:]
    field = functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    kind, even = chance[:, :1, None, None], chance[:, 1:2, None, None]
    smooth = (8 * (field - 0.5) + 2 * even - 1).sigmoid()
    own = torch.where(kind < share / 2, even, torch.where(kind < share, smooth, 1.0))
    return own * images + (1 - own) * others


def moved(images: Tensor, chance: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) shifted, turned and scaled, their edges drawn out.

    Args:
        chance: (N, 4), uniform in (0, 1).
        most: of the shift in halves of the picture, of the turn in radians, and of the change of
            scale.
    """
    across, down, turn, scale = (most * (2 * chance - 1)).unbind(1)
    cosine, sine = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
