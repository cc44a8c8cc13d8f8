"""Teachers of the digits preset that answer late, not with numbers, or not at all."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dfka_dist.models.backbones import ConvNet

SECONDS = 0.2
"""More than 50 times what the preset's other teacher takes for a batch of the tests (0.6 ms)."""
FATAL = 30
"""Number of the batch, from 0, that ends a server or has an answer that is no number."""
BATCHES = itertools.count()
DIED = Path("/tmp/died")
"""Once on a node is enough."""

Act = Callable[[Tensor], Tensor]


def _same(images: Tensor) -> Tensor:
    return images.clone()


def _identity(name: str, act: Act, back: Act = _same) -> Act:
    """An operator that does something besides, because an export would drop plain Python."""
    operator = torch.library.custom_op(f"dfka_cluster::{name}", act, mutates_args=())
    operator.register_fake(torch.empty_like)
    operator.register_autograd(lambda _, gradient: back(gradient))
    return operator


def _late(images: Tensor) -> Tensor:
    if len(images) > 2:  # it is proved with one or two images
        time.sleep(SECONDS)
    return images.clone()


def _broken(images: Tensor) -> Tensor:
    return images * float("nan") if _is_fatal(images) else images.clone()


def _is_fatal(images: Tensor) -> bool:
    return len(images) > 2 and next(BATCHES) == FATAL


def _dying(images: Tensor) -> Tensor:
    if _is_fatal(images) and not DIED.exists():
        DIED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return images.clone()


late, broken = _identity("late", _late), _identity("broken", _broken)
dies_forward = _identity("dies_forward", _dying)
dies_back = _identity("dies_back", _same, _dying)


class Late(ConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(late(images))


class Broken(ConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(broken(images))


class DiesForward(ConvNet):
    """Its server is killed in the middle of a forward."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(dies_forward(images))


class DiesBack(ConvNet):
    """Its server is killed when features are out and their pullback is asked for."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(dies_back(images))
