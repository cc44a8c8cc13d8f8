"""The group-stack generator G: noise to an image, through features at every depth of the teachers
(eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfka_dist.models.filters import FilterBank, Filtered, Shape


class Stack(NamedTuple):
    """What the generator makes of one latent batch; features run from group 1 to group B-1."""

    images: Tensor
    """(N, C, H, W) in [0, 1]: I_g, the output of group B."""
    features: list[Filtered]
    """F_g^j, (N, *shape of reference depth B-j), with the filters of eq. 9."""


class GroupStackGenerator(nn.Module):
    """Groups G^1..G^B; group j hands on a feature in the shape of teacher depth B-j.

    Args:
        latent: Z.
        shapes: of depths 0..B-1 of the reference teacher; depth 0 is the image.
        teachers: per teacher its own shapes at those depths, for the filters; empty for none.
        labels: C, how many labels can be asked for.
        width: channels inside a group as a multiple of those it is given.
    """

    label_vectors: Tensor

    def __init__(
        self,
        *,
        latent: int,
        shapes: Sequence[Shape],
        teachers: dict[str, Sequence[Shape]],
        labels: int,
        width: float = 1.0,
        label_scale: float = 2.0,
    ) -> None:
        super().__init__()
        self.shapes = list(shapes)
        outputs = list(reversed(shapes))  # group 1 .. group B
        first, wide = outputs[0], max(shape[0] for shape in shapes)
        self.seed_shape = (wide, -(-first[1] // 2), -(-first[2] // 2))
        vectors = nn.functional.normalize(torch.randn(labels, latent)) * latent**0.5 * label_scale
        self.register_buffer("label_vectors", vectors)
        self.project = nn.Linear(
            latent, self.seed_shape[0] * self.seed_shape[1] * self.seed_shape[2]
        )
        inputs = [self.seed_shape, *outputs[:-1]]
        self.groups = nn.ModuleList(
            _Group(source=i, wanted=o, width=width, last=o is outputs[-1])
            for i, o in zip(inputs, outputs, strict=True)
        )
        places = list(reversed(range(1, len(shapes))))  # depths of groups 1 .. B-1
        self.filters = nn.ModuleList(
            FilterBank(shapes[depth], {name: own[depth] for name, own in teachers.items()})
            for depth in places
        )

    def forward(self, noise: Tensor, targets: Tensor) -> Stack:
        """Make images and features.

        Args:
            noise: (N, Z), standard normal.
            targets: (N, C), the label set asked of each image; all zero asks for nothing.
        """
        latent = noise + targets @ self.label_vectors
        value = self.project(latent).unflatten(1, self.seed_shape)
        value = value.contiguous(memory_format=torch.channels_last)
        features = []
        for group in self.groups:
            value = group(value)
            features.append(value)
        *inner, images = features
        banks = zip(self.filters, inner, strict=True)
        return Stack(images, [bank(feature) for bank, feature in banks])


class _Group(nn.Module):
    """Two convolutions at the smaller size, then sub-pixel enlargement (Shi et al., CVPR 2016).

    The last group smooths a few channels at full size and ends in a sigmoid: a normalised end
    would force
    zero-mean images, wrong for pictures that are mostly background.
    """

    def __init__(self, *, source: Shape, wanted: Shape, width: float, last: bool) -> None:
        super().__init__()
        inside = max(8, round(source[0] * width))
        made = 8 * wanted[0] if last else wanted[0]
        self.size = wanted[1:]
        self.factor = max(-(-wanted[1] // source[1]), -(-wanted[2] // source[2]))
        self.widen = nn.Conv2d(source[0], inside, kernel_size=3, padding=1, bias=False)
        self.normalize = nn.BatchNorm2d(inside)
        self.narrow = nn.Conv2d(inside, made * self.factor**2, kernel_size=3, padding=1)
        self.end = (
            nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(made, wanted[0], kernel_size=3, padding=1))
            if last
            else nn.Sequential(nn.BatchNorm2d(made), nn.ReLU())
        )
        self.last = last
        self._begin_even()

    def _begin_even(self) -> None:
        """All pixels that a place becomes begin alike (Aitken et al., 2017): there is no
        checkerboard to begin with, that the teachers might take for a texture."""
        places = self.factor**2
        with torch.no_grad():
            for part in self.narrow.parameters():
                part.copy_(part[::places].repeat_interleave(places, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """(N, *source) to (N, *wanted)."""
        value = nn.functional.leaky_relu(self.normalize(self.widen(features)), 0.2)
        value = nn.functional.pixel_shuffle(self.narrow(value), self.factor)
        if value.shape[2:] != self.size:
            # bf16 has no antialiased interpolation on CPUs.
            value = nn.functional.interpolate(
                value.float(), size=self.size, mode="bilinear", antialias=True
            )
        made: Tensor = self.end(value)
        return made.float().sigmoid() if self.last else made.float()
