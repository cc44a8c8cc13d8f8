"""Built-in networks: small convolutional classifiers whose blocks halve the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)


def convnet_blocks(*, channels: int, widths: Sequence[int] = WIDTHS) -> nn.ModuleList:
    """Blocks one after another; the b-th, from 1, makes (N, widths[b-1], H / 2^b, W / 2^b)."""
    inputs = [channels, *widths[:-1]]
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(wide, out, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )
        for wide, out in zip(inputs, widths, strict=True)
    )


class ConvNet(nn.Module):
    """Strided blocks `block1`..`blockB`, mean pooling and one fully connected layer."""

    def __init__(
        self, *, channels: int = 1, labels: int = 10, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        self.block_names = [f"block{depth}" for depth in range(1, len(widths) + 1)]
        for name, block in zip(
            self.block_names, convnet_blocks(channels=channels, widths=widths), strict=True
        ):
            self.add_module(name, block)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        features = images
        for name in self.block_names:
            features = self.get_submodule(name)(features)
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


BUILTIN: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}
"""What `builtin:<name>` may name; each takes channels, labels and its own arguments."""

TRUNKS: dict[str, Callable[..., nn.ModuleList]] = {"convnet": convnet_blocks}
"""What `target.backbone` may name; each takes channels and its own arguments."""
