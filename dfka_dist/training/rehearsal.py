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

from dfka_dist.teachers.interface import Pending
from dfka_dist.training.altering import MIXES, MOVES, mixed, moved
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.panel import Panel
from dfka_dist.training.streams import Streams

DRAWS = MOVES + MIXES
"""Random numbers that altering an image takes."""


@dataclass(frozen=True)
class Rehearsal:
    """Draws from a memory, and alters what it drew.

    Args:
        move: see `moved`.
        mix: share of images that are mixed with another.
        names: teachers that are asked; None for all.
    """

    memory: SampleMemory
    panel: Panel
    streams: Streams
    move: float
    mix: float
    names: Sequence[str] | None = None

    def ask(self, streams: Sequence[str], step: int, stride: int = 1) -> Pending[list[Labelled]]:
        """A batch for each stream, a function of stream and step alone, all asked about at once;
        none where nothing is remembered.

        Args:
            stride: every how-manyth column has an image; the next stream begins a column earlier.
        """
        if not len(self.memory):
            return Known([])
        drawn = [self.memory.draw(s, step, turn, stride) for turn, s in enumerate(streams)]
        if not (self.move or self.mix):
            return Known(drawn)
        images = [
            self._altered(part.images, s, step, turn, stride)
            for turn, (s, part) in enumerate(zip(streams, drawn, strict=True))
        ]
        homes = torch.cat([part.homes for part in drawn])
        pending = self.panel.labelled(torch.cat(images), homes, self.names)
        return _Asked(pending, [len(part) for part in images])

    def _altered(self, images: Tensor, stream: str, step: int, turn: int, stride: int) -> Tensor:
        every = self.streams.uniform(f"altered.{stream}", step, self.memory.columns, DRAWS)
        chance = every[self.memory.every(turn, stride)].to(images)
        if self.mix:
            # of the same column: nobody else's image is needed, and it has the same home
            others = self.memory.draw(f"other.{stream}", step, turn, stride).images
            images = mixed(images, others, chance[:, MOVES:], self.mix)
        return moved(images, chance[:, :MOVES], self.move) if self.move else images


@dataclass(frozen=True)
class Known:
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
            self._parts = [whole.taken(slice(a, b)) for a, b in zip(starts, ends, strict=False)]
        return self._parts
