"""A set of synthesized images on which networks are compared when there are no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.evaluation import agreement_and_coverage, merge
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Question, TeacherOutput, Teachers

MOMENTS = 4
"""Generators, at equally spaced moments of a run, that give equal parts."""
PART = 64


class ProbeSet:
    """Images of several generators, a mixed and a shifted copy among them; never trained on."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Take one generator's part, (PART, C, H, W) in [0, 1]."""
        self._parts.append(images)

    def images(self) -> Tensor:
        """(N, C, H, W): all parts, neighbours across them mixed half and half, and all moved a
        little."""
        plain = torch.cat(self._parts)
        mixed = (plain + plain.roll(len(plain) // 2 + 1, dims=0)) / 2
        largest = max(1, plain.shape[-1] // 16)
        moved = plain.roll((largest, -largest), dims=(2, 3))
        return torch.cat([plain, mixed, moved])

    def judge(self, target: TargetNet, teachers: Teachers) -> dict[str, Any]:
        """`data_free` of the result: agreement with the teachers, coverage of the labels."""
        images = self.images()
        parts = torch.split(images, PART)
        specs = {name: description.spec for name, description in teachers.descriptions.items()}
        asked = [teachers.forward(Question(part, tuple(specs))) for part in parts]
        own = torch.cat([target.predict(part) for part in parts])
        heard = [_probabilities(pending.result(), specs) for pending in asked]
        said = {name: torch.cat([answers[name] for answers in heard]) for name in specs}
        theirs = merge(said, {name: spec.labels for name, spec in specs.items()}, target.labels)
        small = torch.nn.functional.adaptive_avg_pool2d(images, min(8, images.shape[-1])).flatten(1)
        return agreement_and_coverage(theirs.cpu(), own.cpu(), small.cpu(), target.labels)


def _probabilities(
    answers: Mapping[str, TeacherOutput], specs: Mapping[str, TeacherSpec]
) -> dict[str, Tensor]:
    return {
        name: probabilities(answer.logits, specs[name].task)
        for name, answer in answers.items()
        if answer.logits is not None
    }
