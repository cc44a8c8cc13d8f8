"""Built-in networks: small convolutional classifiers whose blocks halve the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)
RESNET_WIDTHS = (16, 32, 64, 96)


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


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016); halves the picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        return torch.relu(self.body(features) + self.shortcut(features))


def resnet_blocks(*, channels: int, widths: Sequence[int] = RESNET_WIDTHS) -> nn.ModuleList:
    """Residual blocks in place of those of `convnet_blocks`."""
    inputs = [channels, *widths[:-1]]
    return nn.ModuleList(Residual(wide, out) for wide, out in zip(inputs, widths, strict=True))


class _Chain(nn.Module):
    """Blocks `block1`..`blockB`, mean pooling and one fully connected layer."""

    def __init__(self, blocks: nn.ModuleList, *, width: int, labels: int) -> None:
        super().__init__()
        self.block_names = [f"block{depth}" for depth in range(1, len(blocks) + 1)]
        for name, block in zip(self.block_names, blocks, strict=True):
            self.add_module(name, block)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        features = images
        for name in self.block_names:
            features = self.get_submodule(name)(features)
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


class ConvNet(_Chain):
    """Strided convolutions."""

    def __init__(
        self, *, channels: int = 1, labels: int = 10, widths: Sequence[int] = WIDTHS
    ) -> None:
        blocks = convnet_blocks(channels=channels, widths=widths)
        super().__init__(blocks, width=widths[-1], labels=labels)


class ResNet(_Chain):
    """Strided residual blocks."""

    def __init__(
        self, *, channels: int = 1, labels: int = 10, widths: Sequence[int] = RESNET_WIDTHS
    ) -> None:
        blocks = resnet_blocks(channels=channels, widths=widths)
        super().__init__(blocks, width=widths[-1], labels=labels)


BUILTIN: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "resnet": ResNet}
"""What `builtin:<name>` may name; each takes channels, labels and its own arguments."""

TRUNKS: dict[str, Callable[..., nn.ModuleList]] = {
    "convnet": convnet_blocks,
    "resnet": resnet_blocks,
}
"""What `target.backbone` may name; each takes channels and its own arguments."""
