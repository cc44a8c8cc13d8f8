"""A set of synthesized images on which networks are compared when there are no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfka_dist.evaluation import agreement_and_coverage, merge
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Wanted
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Panel, answered

MOMENTS = 4
"""Generators, at equally spaced moments of a run, that give equal parts."""
PART = 256
STRIDE = 256


class ProbeSet:
    """Images of several generators, mixed and shifted copies among them; a run's own are never
    trained on."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._labelled: tuple[Labelled, dict[str, Tensor]] | None = None
        self._heard: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, images: Tensor, homes: Tensor) -> None:
        """Take one generator's part, (n, C, H, W) in [0, 1], with the homes (n,)."""
        self._parts.append((images, homes))
        self._heard = None

    def add_labelled(self, batch: Labelled) -> None:
        """Take images whose labels are known; nothing is mixed or moved, nobody is asked."""
        said = {
            name: probabilities(batch.logits[name], voice.task)
            for name, voice in self._panel.voices.items()
        }
        self._labelled = batch, said

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
        if self._heard is None:
            images, homes = self.images() if self._labelled is None else self._archived()
            said = self._ask(images) if self._labelled is None else self._labelled[1]
            theirs = merge(said, self._labels, target.labels).cpu()
            self._heard = images, theirs, self._known(homes, target.labels)
        images, theirs, known = self._heard
        own = torch.cat([target.predict(part) for part in torch.split(images, STRIDE)]).cpu()
        small = torch.nn.functional.adaptive_avg_pool2d(images, min(8, images.shape[-1])).flatten(1)
        return agreement_and_coverage(theirs * known, own * known, small.cpu(), target.labels)

    def _archived(self) -> tuple[Tensor, Tensor]:
        assert self._labelled is not None
        return self._labelled[0].images, self._labelled[0].homes

    def _ask(self, images: Tensor) -> dict[str, Tensor]:
        """The teachers' probabilities, each (N, K); all are asked, whoever is at home, for a label
        that two of them know is averaged as in the target."""
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
        return {name: torch.cat(rows) for name, rows in said.items()}

    @property
    def _labels(self) -> dict[str, list[str]]:
        return {name: v.description.spec.labels for name, v in self._panel.voices.items()}

    def _known(self, homes: Tensor, labels: list[str]) -> Tensor:
        """(N, C), one where the label is one that the image's home knows."""
        known = torch.ones(len(homes), len(labels))
        for index, voice in enumerate(self._panel.voices.values()):
            own = set(voice.description.spec.labels)
            known[homes.cpu() == index] = torch.tensor([float(label in own) for label in labels])
        return known
