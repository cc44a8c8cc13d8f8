"""A set of synthesized images on which networks are compared when there are no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfka_dist.evaluation import agreement_and_coverage, merge
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Wanted
from dfka_dist.training.panel import Panel, answered

MOMENTS = 4
"""Generators, at equally spaced moments of a run, that give equal parts."""
PART = 256
STRIDE = 256


class ProbeSet:
    """Images of several generators, mixed and shifted copies among them; never trained on."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._heard: tuple[Tensor, Tensor] | None = None

    def add(self, images: Tensor, homes: Tensor) -> None:
        """Take one generator's part, (n, C, H, W) in [0, 1], with the homes (n,)."""
        self._parts.append((images, homes))
        self._heard = None

    def images(self) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) and homes (N,): all parts, those of one home mixed half and half, and all
        moved a little."""
        plain, homes = (torch.cat(tensors) for tensors in zip(*self._parts, strict=True))
        mixed = plain.clone()
        for home in set(homes.tolist()):
            own = (homes == home).nonzero()[:, 0]
            mixed[own] = (plain[own] + plain[own.roll(len(own) // 2 + 1)]) / 2
        largest = max(1, plain.shape[-1] // 16)
        moved = plain.roll((largest, -largest), dims=(2, 3))
        return torch.cat([plain, mixed, moved]), homes.repeat(3)

    def judge(self, target: TargetNet) -> dict[str, Any]:
        """`data_free` of a target in eval mode: agreement with the teachers, coverage of the
        labels."""
        images, homes = self.images()
        if self._heard is None:
            self._heard = self._ask(images, target.labels), self._known(homes, target.labels)
        theirs, known = self._heard
        own = torch.cat([target.predict(part) for part in torch.split(images, STRIDE)]).cpu()
        small = torch.nn.functional.adaptive_avg_pool2d(images, min(8, images.shape[-1])).flatten(1)
        return agreement_and_coverage(theirs * known, own * known, small.cpu(), target.labels)

    def _ask(self, images: Tensor, labels: list[str]) -> Tensor:
        """The teachers' probabilities (N, C), on the CPU; a label that two of them know is averaged
        as in the target, whoever is at home with the image."""
        everyones = torch.full((STRIDE,), -1)
        asked = [
            self._panel.about_images(part, everyones[: len(part)], Wanted())
            for part in torch.split(images, STRIDE)
        ]
        said: dict[str, list[Tensor]] = {name: [] for name in self._panel.voices}
        for questions in asked:
            for each in questions:
                for name, answer in each.answer.result().items():
                    own = probabilities(answered(answer), self._panel.voices[name].task)
                    said[name].append(own)
        specs = {name: voice.description.spec for name, voice in self._panel.voices.items()}
        own_labels = {name: spec.labels for name, spec in specs.items()}
        return merge({n: torch.cat(rows) for n, rows in said.items()}, own_labels, labels).cpu()

    def _known(self, homes: Tensor, labels: list[str]) -> Tensor:
        """(N, C), one where the label is one that the image's home knows."""
        known = torch.ones(len(homes), len(labels))
        for index, voice in enumerate(self._panel.voices.values()):
            own = set(voice.description.spec.labels)
            known[homes == index] = torch.tensor([float(label in own) for label in labels])
        return known
