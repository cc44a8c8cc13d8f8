"""The built-in networks."""

from __future__ import annotations

import pytest
import torch

from dfka_dist.models.backbones import WIDTHS, ConvNet, convnet_blocks


@pytest.mark.parametrize("size", [16, 17, 32])
def test_every_block_halves_the_picture(size: int) -> None:
    value = torch.zeros(2, 1, size, size)
    for width, block in zip([4, 6], convnet_blocks(channels=1, widths=[4, 6]), strict=True):
        value, before = block(value), value.shape[-1]
        assert value.shape == (2, width, -(-before // 2), -(-before // 2))


def test_a_classifier_says_something_of_every_label() -> None:
    assert ConvNet(channels=3, labels=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_blocks_have_the_names_that_a_configuration_uses() -> None:
    network = ConvNet(widths=[4, 6, 8])
    names = [name for name, _ in network.named_children()]
    assert names == ["block1", "block2", "block3", "pool", "classifier"]


def test_a_trunk_has_the_shapes_of_a_classifiers_blocks() -> None:
    network, blocks = ConvNet(), convnet_blocks(channels=1)
    ours = [tuple(p.shape) for p in blocks.parameters()]
    theirs = [tuple(p.shape) for name, p in network.named_parameters() if name.startswith("block")]
    assert len(blocks) == len(WIDTHS)
    assert ours == theirs
