"""What a run draws at random, latents and label sets, and the images made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.models.generator import GroupStackGenerator, Stack
from dfka_dist.training.altering import MOVES
from dfka_dist.training.streams import Streams, first_label
from dfka_dist.training.turns import only_synthesizing


class Drawn(NamedTuple):
    """What a batch is made of."""

    noise: Tensor
    """(N, Z), standard normal."""
    asked_for: Tensor
    """(N, A) label sets in the order of `RunConfig.asked_labels`."""
    targets: Mapping[str, Tensor | None]
    """The same (N, K) per teacher; None for the teachers' own decisions."""
    moves: Tensor | None = None
    """(N, MOVES), uniform in (0, 1), how the images are moved on their way; None for not."""


class Draws:
    """Latents and label sets by stream, step and global sample index.

    Args:
        pools: indices of labels that may be asked of one image, among `RunConfig.asked_labels`, in
            the order in which images are asked for them.
    """

    def __init__(
        self, config: RunConfig, pools: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self._streams = Streams(config.run.seed)
        self._spec, self._sampled = config.generator, config.training.sampled_labels
        self._labels, self._wanted = config.asked_labels, len(config.labels)
        self._pools, self._device = pools, device
        self._batch = config.training.batch_size

    def latents(
        self, stream: str, step: int, rows: range, pools: Sequence[Sequence[int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise (N, Z), and the label sets asked for (N, A); all zero where none are sampled.

        Args:
            pools: others than those of the run.
        """
        noise = self._streams.normal(f"noise.{stream}", step, rows, self._spec.latent)
        sets = self._streams.label_sets(
            f"labels.{stream}",
            step,
            rows,
            len(self._labels),
            self._spec.labels_per_image,
            pools or self._pools,
        )
        asked_for = sets if self._sampled else torch.zeros_like(sets)
        return noise.to(self._device), asked_for.to(self._device)

    def moves(self, stream: str, step: int, rows: range) -> Tensor:
        """(N, MOVES), uniform in (0, 1); two images that are asked for the same labels move alike,
        so that `losses.diversity` does not take a move for a difference."""
        return self._streams.paired(f"moves.{stream}", step, rows, MOVES).to(self._device)

    def targets(self, asked_for: Tensor, labels: Sequence[str]) -> Tensor | None:
        """The label sets as one teacher names them, (N, K); None where none are sampled."""
        if not self._sampled:
            return None
        nothing = asked_for.new_zeros(len(asked_for))
        known = {label: asked_for[:, i] for i, label in enumerate(self._labels)}
        return torch.stack([known.get(label, nothing) for label in labels], dim=1)

    def synthesize(
        self, generator: GroupStackGenerator, stream: str, step: int, rows: range
    ) -> Stack:
        """Images and features of a generator out of turn, of which nothing moves."""
        with only_synthesizing(generator):
            stack: Stack = generator(*self.latents(stream, step, rows))
        return stack

    def sheet(self, generator: GroupStackGenerator, each: int, most: int) -> Tensor:
        """(labels * each, C, H, W) on the CPU, one wanted label after the other, no more of them
        made at once than a batch.

        Args:
            each: images of a label; even.
            most: wanted labels that are shown, from the first.
        """
        labels = range(min(self._wanted, most))
        pools = [[i for i in dict.fromkeys(pool) if i in labels] for pool in self._pools]
        pools = [pool for pool in pools if pool]
        rows = range(each * len(pools) * max(map(len, pools)))
        shown = [first_label(row // 2, pools) for row in rows]
        own = torch.tensor([[row for row in rows if shown[row] == i][:each] for i in labels])
        kept = []
        with only_synthesizing(generator):
            for part in _alike(rows, self._batch):
                stack: Stack = generator(*self.latents("samples", 0, part, pools))
                kept.append(stack.images.cpu()[torch.isin(torch.tensor(part), own)])
        return torch.cat(kept)[own.flatten().argsort().argsort()]


def _alike(rows: range, most: int) -> list[range]:
    """Rows in slices of at most `most`, as few as can be."""
    # All of one length, for BatchNorm sees a slice alone, and a rest of two images says nothing;
    # neighbours are asked for one label after the other, so that each slice is as mixed as a batch.
    count = -(-len(rows) // most)
    edges = [len(rows) * index // count for index in range(count + 1)]
    return [rows[start:stop] for start, stop in pairwise(edges)]
