"""One block of the dual generator as it is trained: what lies in front of it is frozen (eq. 15)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfka_dist.models.filters import FilterBank, Filtered, Shape
from dfka_dist.models.preprocessing import Preprocessing, channels_last


class DualBlock(nn.Module):
    """Block T^b with its filters f_m^b behind the blocks T^1..T^(b-1), which never change.

    Args:
        blocks: T^1..T^b.
        frozen: how many of them do not change; b - 1, or b where only filters are wanted.
        source: (C, H, W) behind T^b.
        wanted: per teacher the shape of the feature that its tail eats.
        adapt: filters with their 1x1 convolution even between equal shapes.
        link: shape of the generator's features and of what T^b eats, for the second stream.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        blocks: nn.ModuleList,
        *,
        frozen: int,
        source: Shape,
        wanted: Mapping[str, Shape],
        adapt: bool = False,
        link: tuple[Shape, Shape] | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing, self.blocks, self.frozen = preprocessing, blocks, frozen
        self.filters = FilterBank(source, wanted, adapt=adapt)
        self.adapter = _adapter(*link) if link else None
        blocks[:frozen].requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As usual, but frozen blocks stay on their running statistics."""
        super().train(mode)
        self.blocks[: self.frozen].eval()
        return self

    def forward(
        self, images: Tensor, link: Tensor | None = None
    ) -> tuple[Filtered, Filtered | None]:
        """What the teachers' tails shall eat, of both streams.

        Args:
            images: (N, C, H, W) in [0, 1]; F_1 = T^(b-1)..T^1 of them.
            link: F_2, the generator's feature of the same depth; without it one stream.
        """
        value = channels_last(self.preprocessing(images))
        for block in self.blocks:
            value = block(value)
        own = self.filters(value.float())
        return own, None if link is None else self._linked(link)

    def _linked(self, link: Tensor) -> Filtered:
        """The second stream is not seen again: it leaves no trace in the running statistics."""
        value = link if self.adapter is None else self.adapter(link)
        with untracked(self.blocks[-1]):
            value = self.blocks[-1](value.contiguous(memory_format=torch.channels_last))
        linked: Filtered = self.filters(value.float())
        return linked


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """BatchNorm layers that are trained normalise by the batch and leave their buffers alone."""
    layers = [
        part
        for part in network.modules()
        if isinstance(part, _BatchNorm) and part.training and part.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _adapter(source: Shape, wanted: Shape) -> nn.Module | None:
    """From the generator's shape at a depth to the trunk's."""
    if source == wanted:
        return None
    resize = nn.Upsample(size=wanted[1:], mode="bilinear")
    return nn.Sequential(resize, nn.Conv2d(source[0], wanted[0], kernel_size=1))
