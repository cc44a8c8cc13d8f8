"""A network that a user could have brought, as `package.module:callable`, with moods.

The moods are operators of their own: exporting a network, which is how it is cut, keeps these and
would drop plain Python. They come with batches of a certain size, which no test has by accident.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.models.backbones import ConvNet

SLOW, SECONDS = 7, 1.0
"""A batch of this size takes this long."""
FAILING = 13
"""A batch of this size raises."""


@torch.library.custom_op("dfka_tests::moody", mutates_args=())
def moody(images: Tensor) -> Tensor:
    if len(images) == SLOW:
        time.sleep(SECONDS)
    if len(images) == FAILING:
        raise ArithmeticError("this teacher cannot count")
    return images.clone()


moody.register_fake(torch.empty_like)
moody.register_autograd(lambda _, gradient: gradient)


class MoodyConvNet(ConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(moody(images))


def with_moods(spec: TeacherSpec) -> TeacherSpec:
    """The same weights in a moody network."""
    own = {"channels": spec.input.channels, "labels": len(spec.labels)}
    source = f"{MoodyConvNet.__module__}:{MoodyConvNet.__name__}"
    return spec.model_copy(update={"source": source, "arguments": own | spec.arguments})
