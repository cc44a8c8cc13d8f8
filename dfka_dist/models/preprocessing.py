"""From images in [0, 1] to what a network was trained on; part of teachers and target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfka_dist.config import InputSpec


class Preprocessing(nn.Module):
    """Differentiable resize, channel rule and normalisation.

    One channel becomes three by repetition, three become one by their mean.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.channels, self.size = spec.channels, spec.size
        # Constants of the architecture, not weights: they stand in the configuration.
        self.register_buffer("mean", _column(spec.mean), persistent=False)
        self.register_buffer("deviation", _column(spec.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to (N, channels, size, size), normalised."""
        if images.shape[-2:] != (self.size, self.size):
            images = nn.functional.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        if images.shape[1] != self.channels:
            images = (
                images.expand(-1, 3, -1, -1) if self.channels == 3 else images.mean(1, keepdim=True)
            )
        return (images - self.mean.to(images.dtype)) / self.deviation.to(images.dtype)


def channels_last(images: Tensor) -> Tensor:
    """(N, C, H, W) as it is, laid out so that convolutions work pixel by pixel.

    One channel alone is laid out either way at once, and convolutions would take the slower one if
    its strides did not say which is meant.
    """
    if images.shape[1] == 1:
        return images.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def common_input(specs: list[InputSpec]) -> InputSpec:
    """What the generator makes and the target eats: the largest size and channel count there is."""
    first = specs[0]
    if all(spec == first for spec in specs):
        return first
    channels = max(spec.channels for spec in specs)
    return InputSpec(channels=channels, size=max(spec.size for spec in specs))


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]
