"""Networks out of turn: they are used, and nothing in them moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dfka_dist.models.dual import untracked


@contextmanager
def listened_to(network: nn.Module) -> Iterator[None]:
    """A network as a critic: gradients go through it, nothing in it moves, BatchNorm uses its
    buffers."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    was_training = network.training
    network.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        network.train(was_training)


@contextmanager
def only_synthesizing(network: nn.Module) -> Iterator[None]:
    """A generator out of turn: BatchNorm normalises by the batch and leaves its buffers alone; no
    gradients."""
    was_training = network.training
    network.train()
    try:
        with untracked(network), torch.no_grad():
            yield
    finally:
        network.train(was_training)
