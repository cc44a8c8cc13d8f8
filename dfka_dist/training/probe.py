"""A set of synthesized images on which networks are compared when there are no data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfka_dist.evaluation import agreement_and_coverage, merge
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Wanted
from dfka_dist.training.checkpoint import Reading, Writing, read_json, write_json
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Panel, answered

MOMENTS = 4
"""Generators, at equally spaced moments of a run, that give equal parts."""
STRIDE = 256
"""Images that are looked at together."""
SMALL = 8
"""Side of the pictures whose distances say how far images are apart."""


class ProbeSet:
    """Images of several generators, mixed and shifted copies among them; a run's own are never
    trained on. Only the images are kept, their copies are made anew for every look."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._labelled: tuple[Labelled, dict[str, Tensor]] | None = None
        self._heard: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, images: Tensor, homes: Tensor) -> None:
        """Take one generator's part, (n, C, H, W) in [0, 1], with the homes (n,)."""
        self._parts.append((images.cpu(), homes.cpu()))
        self._heard = None

    def add_labelled(self, batch: Labelled) -> None:
        """Take images whose labels are known; nothing is mixed or moved, nobody is asked."""
        said = {
            name: probabilities(batch.logits[name], voice.task)
            for name, voice in self._panel.voices.items()
        }
        self._labelled = batch, self._by_homes(said, batch.homes)

    def save(self, writing: Writing, name: str) -> None:
        """Every part once; the same on every rank."""
        if writing.rank == 0:
            for index, (images, homes) in enumerate(self._parts):
                part = {"images": images, "homes": homes}
                writing.outlasting(f"{name}-{index}", partial(dict, part))
            write_json(writing.under(name) / "parts.json", {"parts": len(self._parts)})

    def restore(self, reading: Reading, name: str) -> None:
        """Have the parts that were saved."""
        told = read_json(reading.folder / name / "parts.json")
        parts = [reading.outlasting(f"{name}-{index}") for index in range(told["parts"])]
        self._parts = [(part["images"], part["homes"]) for part in parts]

    def looks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images with their homes, at most `STRIDE` together: every part as it is, those of one
        home mixed half and half, and all moved a little."""
        if self._labelled is not None:
            batch, _ = self._labelled
            yield from zip(
                torch.split(batch.images, STRIDE), torch.split(batch.homes, STRIDE), strict=True
            )
            return
        plain, homes = (torch.cat(each) for each in zip(*self._parts, strict=True))
        rows = torch.split(torch.arange(len(plain)), STRIDE)
        other = _others(homes)
        largest = max(1, plain.shape[-1] // 16)
        yield from ((plain[own], homes[own]) for own in rows)
        yield from (((plain[own] + plain[other[own]]) / 2, homes[own]) for own in rows)
        yield from ((plain[own].roll((largest, -largest), dims=(2, 3)), homes[own]) for own in rows)

    def judge(self, target: TargetNet) -> dict[str, Any]:
        """`data_free` of a target in eval mode: agreement with the teachers, coverage of the
        labels."""
        if self._heard is None:
            self._heard = self._teachers(target.labels)
        theirs, known, small = self._heard
        device = next(target.parameters()).device
        own = torch.cat([target.predict(images.to(device)).cpu() for images, _ in self.looks()])
        return agreement_and_coverage(theirs * known, own * known, small, target.labels)

    def _teachers(self, labels: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Of all N images what the teachers say (N, C), of which labels that counts (N, C), and the
        images made small and flat."""
        theirs = merge(self._answers(), self._labels, labels).cpu()
        homes = torch.cat([own.cpu() for _, own in self.looks()])
        small = torch.cat([_small(images).cpu() for images, _ in self.looks()])
        return theirs, self._known(homes, labels), small

    def _answers(self) -> dict[str, Tensor]:
        if self._labelled is not None:
            return self._labelled[1]
        said = [self._ask(images) for images, _ in self.looks()]
        return {name: torch.cat([each[name] for each in said]) for name in self._panel.voices}

    def _ask(self, images: Tensor) -> dict[str, Tensor]:
        """The teachers' probabilities, each (n, K); all are asked, whoever is at home, for a label
        that two of them know is averaged as in the target."""
        everyones = torch.full((len(images),), -1)
        return {
            name: probabilities(answered(answer), self._panel.voices[name].task)
            for each in self._panel.about_images(images, everyones, Wanted())
            for name, answer in each.answer.result().items()
        }

    def _by_homes(self, said: dict[str, Tensor], homes: Tensor) -> dict[str, Tensor]:
        """The same, where of a label that several teachers know an image's home alone is heard: of
        the others an archive has nothing."""
        for index, home in enumerate(said):
            rows = homes == index
            for name, label in itertools.product(said, self._labels[home]):
                if label in self._labels[name]:
                    known = said[home][rows, self._labels[home].index(label)]
                    said[name][rows, self._labels[name].index(label)] = known
        return said

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


def _others(homes: Tensor) -> Tensor:
    """Which image each image is mixed with, (N,): another of its home."""
    other = torch.arange(len(homes))
    for home in set(homes.tolist()):
        own = (homes == home).nonzero()[:, 0].cpu()
        other[own] = own.roll(max(1, (len(own) // 2 + 1) % len(own)))
    return other


def _small(images: Tensor) -> Tensor:
    side = min(SMALL, images.shape[-1])
    return torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1)
