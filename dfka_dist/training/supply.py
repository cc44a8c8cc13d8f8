"""Images with the teachers' answers, asked ahead of need."""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dfka_dist.archive import Archive, ArchivedBatch
from dfka_dist.models.generator import GroupStackGenerator, Stack
from dfka_dist.teachers.interface import Pending
from dfka_dist.training.draws import Draws
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Panel
from dfka_dist.training.rehearsal import Rehearsal
from dfka_dist.training.streams import Streams

Item = TypeVar("Item")


class Supply(Protocol):
    """What a student learns from."""

    def batches(self, stream: str, steps: range) -> Iterator[Labelled]:
        """This worker's share of a batch for each step, a function of stream and step alone."""

    def unseen(self, stream: str, steps: range) -> Iterator[Labelled]:
        """The same, of images that nothing has learned from, where there are such."""


@dataclass(frozen=True)
class Synthesized:
    """Images of a generator that learns no more: remembered ones, or without any fresh ones.

    What is remembered is of the generator's whole way, as far as it fits into the memory, and so of
    more kinds than it makes in the end.

    Args:
        rehearsal: its memory may be empty.
        window: batches that are with the teachers while an earlier one is learned from.
    """

    generator: GroupStackGenerator
    draws: Draws
    panel: Panel
    columns: range
    rehearsal: Rehearsal
    window: int

    def batches(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.batches`."""
        if len(self.rehearsal.memory):
            yield from rehearsed(self.rehearsal, stream, steps, self.window)
        else:
            yield from self.unseen(stream, steps)

    def unseen(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.unseen`."""
        for _, pending in self.fresh(stream, steps):
            yield pending.result()

    def fresh(self, stream: str, steps: range) -> Iterator[tuple[Stack, Pending[Labelled]]]:
        """Per step the generator's stack, and its labels that are on their way."""

        def ask(step: int) -> tuple[Stack, Pending[Labelled]]:
            stack = self.draws.synthesize(self.generator, stream, step, self.columns)
            return stack, self.panel.labelled(stack.images, self.panel.homes)

        return ahead(ask, steps, self.window)


@dataclass(frozen=True)
class Given:
    """Images that are there, asked about when they are drawn.

    Args:
        images: (n, C, H, W) in [0, 1]; None for uniform noise of `shape`.
    """

    images: Tensor | None
    shape: tuple[int, int, int]
    streams: Streams
    panel: Panel
    columns: range
    window: int
    device: torch.device

    def batches(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.batches`."""
        for pending in ahead(lambda step: self._ask(stream, step), steps, self.window):
            yield pending.result()

    def unseen(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.unseen`; all images are learned from."""
        return self.batches(stream, steps)

    def drawn(self, stream: str, step: int, rows: range) -> Tensor:
        """(len(rows), C, H, W), drawn with replacement."""
        if self.images is None:
            channels, height, width = self.shape
            noise = self.streams.uniform(stream, step, rows, channels * height * width)
            return noise.float().reshape(-1, *self.shape).to(self.device)
        chance = self.streams.uniform(stream, step, rows, 1)[:, 0]
        return self.images[(chance * len(self.images)).long()].float().to(self.device)

    def _ask(self, stream: str, step: int) -> Pending[Labelled]:
        return self.panel.labelled(self.drawn(stream, step, self.columns), self.panel.homes)


@dataclass(frozen=True)
class Archived:
    """Images of an earlier run with the answers that teachers gave then.

    Args:
        homes: for each teacher of the archive, its number among the teachers of this run; one that
            is none of theirs for a teacher that is not heard here.
        share: of the global batch, (this worker, all workers).
    """

    archive: Archive
    homes: tuple[int, ...]
    panel: Panel
    seed: int
    size: int
    share: tuple[int, int]
    device: torch.device

    def batches(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.batches`."""
        seed = zlib.crc32(f"{self.seed}.{stream}".encode())
        rank, workers = self.share
        batches = self.archive.batches(size=self.size, seed=seed, shares=workers, share=rank)
        for batch in itertools.islice(batches, steps.start, steps.stop):
            yield self._labelled(batch)

    def unseen(self, stream: str, steps: range) -> Iterator[Labelled]:
        """See `Supply.unseen`; all images are learned from."""
        return self.batches(stream, steps)

    def probe(self, rows: int) -> Labelled:
        """Some images, the same for every worker, without those that concern no teacher here."""
        batches = self.archive.batches(size=rows, seed=zlib.crc32(f"{self.seed}.probe".encode()))
        batch = self._labelled(next(batches))
        return batch.taken((batch.homes < len(self.panel.voices)).nonzero()[:, 0])

    def _labelled(self, batch: ArchivedBatch) -> Labelled:
        homes = torch.tensor([*self.homes, -1])[batch.homes]  # -1 finds itself
        names = self.panel.voices
        logits = {name: batch.logits[name].to(self.device) for name in names}
        return Labelled(batch.images.to(self.device), logits, homes)


def rehearsed(rehearsal: Rehearsal, stream: str, steps: range, window: int) -> Iterator[Labelled]:
    """Altered images from a memory that is not empty, asked about up to `window` steps ahead."""
    for pending in ahead(lambda step: rehearsal.ask([stream], step), steps, window):
        (batch,) = pending.result()
        yield batch


def ahead(ask: Callable[[int], Item], steps: range, window: int) -> Iterator[Item]:
    """What `ask` gives for every step, asked up to `window` steps before it is needed."""
    waiting: deque[Item] = deque()
    for step in steps:
        waiting.extend(
            ask(later) for later in range(step + len(waiting), min(step + window, steps.stop))
        )
        yield waiting.popleft()
