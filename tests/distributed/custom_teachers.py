"""A network that a user could have brought, as `package.module:callable`, with moods.

The moods are operators of their own: exporting a network, which is how it is cut, keeps these and
would drop plain Python. They come with batches of a certain size, which no test has by accident.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfka_dist.config import TeacherSpec
from dfka_dist.models.backbones import ConvNet

SLOW, SECONDS = 7, 1.0
"""A batch of this size takes this long."""
FAILING = 13
"""A batch of this size raises."""
HUGE = 17
"""A batch of this size wants more memory than there is."""

BUSY, CPU_SECONDS = 11, 0.05
"""A batch of this size computes for so long."""


@torch.library.custom_op("dfka_tests::moody", mutates_args=())
def moody(images: Tensor) -> Tensor:
    if len(images) == SLOW:
        time.sleep(SECONDS)
    if len(images) == BUSY:
        until = time.process_time() + CPU_SECONDS
        while time.process_time() < until:
            pass
    if len(images) == FAILING:
        raise ArithmeticError("this teacher cannot count")
    if len(images) == HUGE:
        torch.empty(2**58, dtype=torch.uint8)
    return images.clone()


moody.register_fake(torch.empty_like)
moody.register_autograd(lambda _, gradient: gradient)


class MoodyConvNet(ConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(moody(images))


class BareConvNet(ConvNet):
    """Without any BatchNorm; its weights are those of the other layers."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for part in list(self.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(part, name, nn.Identity())


class ViewingConvNet(ConvNet):
    """An export has the example's batch size in its flattening: it is entered on its modules."""

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for name in self.block_names:
            features = self.get_submodule(name)(features)
        features = self.pool(features)
        logits: Tensor = self.classifier(features.view(features.size(0), -1))
        return logits


def without_batch_norm(spec: TeacherSpec, folder: Path) -> TeacherSpec:
    """A teacher that has no statistics, of the same shapes."""
    own = {"channels": spec.input.channels, "labels": len(spec.labels)} | spec.arguments
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(BareConvNet(**own).state_dict(), folder / f"{spec.name}.safetensors")
    source = f"{BareConvNet.__module__}:{BareConvNet.__name__}"
    changed = {
        "source": source,
        "arguments": own,
        "weights": str(folder / f"{spec.name}.safetensors"),
    }
    return spec.model_copy(update=changed)


def with_moods(spec: TeacherSpec) -> TeacherSpec:
    """The same weights in a moody network."""
    return _made_by(MoodyConvNet, spec)


def not_exportable(spec: TeacherSpec) -> TeacherSpec:
    """The same weights in a network whose export fits one batch size alone."""
    return _made_by(ViewingConvNet, spec)


def _made_by(network: type[ConvNet], spec: TeacherSpec) -> TeacherSpec:
    own = {"channels": spec.input.channels, "labels": len(spec.labels)}
    source = f"{network.__module__}:{network.__name__}"
    return spec.model_copy(update={"source": source, "arguments": own | spec.arguments})
