"""Teachers that are only there to be measured: `package.module:callable`, with random weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from dfka_dist.config import TeacherSpec


class _Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.body(features) + self.shortcut(features))


class ResNet18(nn.Module):
    """Of the size of ResNet-18 (He et al., CVPR 2016), 11 million parameters."""

    def __init__(self, *, channels: int = 3, labels: int = 10) -> None:
        super().__init__()
        self.block1 = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            _Basic(64, 64, 1),
            _Basic(64, 64, 1),
        )
        for depth, (inputs, outputs) in enumerate([(64, 128), (128, 256), (256, 512)], 2):
            block = nn.Sequential(_Basic(inputs, outputs, 2), _Basic(outputs, outputs, 1))
            self.add_module(f"block{depth}", block)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        features = images
        for depth in range(1, 5):
            features = self.get_submodule(f"block{depth}")(features)
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


# An operator, because what cuts a network keeps operators and drops plain Python.
@torch.library.custom_op("dfka_dist::slept", mutates_args=())
def _slept(images: Tensor, forward: float, backward: float) -> Tensor:
    time.sleep(forward)
    return images.clone()


@_slept.register_fake
def _(images: Tensor, forward: float, backward: float) -> Tensor:
    return torch.empty_like(images)


def _remember(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
    ctx.backward = inputs[2]


def _sleep_again(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    time.sleep(ctx.backward)
    return gradient, None, None


_slept.register_autograd(_sleep_again, setup_context=_remember)


class _Sleep(nn.Module):
    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self.seconds = forward, backward

    def forward(self, images: Tensor) -> Tensor:
        slept: Tensor = _slept(images, *self.seconds)
        return slept


class Sleeping(nn.Module):
    """Sleeps in forward and in backward instead of computing.

    Args:
        forward, backward: seconds.
    """

    def __init__(
        self, *, channels: int = 1, labels: int = 10, forward: float = 0.0, backward: float = 0.0
    ) -> None:
        super().__init__()
        self.block1 = _Sleep(forward, backward)
        self.classifier = nn.Linear(channels, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the mean colour."""
        logits: Tensor = self.classifier(self.block1(images).mean((2, 3)))
        return logits


def resnet18_teacher(name: str, labels: list[str]) -> TeacherSpec:
    """At 64x64, three channels."""
    return TeacherSpec.model_validate(
        {
            "name": name,
            "source": f"{__name__}:ResNet18",
            "arguments": {"channels": 3, "labels": len(labels)},
            "task": "multi_label",
            "labels": labels,
            "blocks": [f"block{depth}" for depth in range(1, 5)],
            "input": {"channels": 3, "size": 64},
        }
    )


def sleeping_teacher(name: str, *, size: int, forward: float, backward: float) -> TeacherSpec:
    """Of pictures of one channel."""
    return TeacherSpec.model_validate(
        {
            "name": name,
            "source": f"{__name__}:Sleeping",
            "arguments": {"forward": forward, "backward": backward},
            "task": "multi_label",
            "labels": [f"{name}.{index}" for index in range(10)],
            "blocks": ["block1"],
            "input": {"channels": 1, "size": size},
        }
    )
