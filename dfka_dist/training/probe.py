"""A set of synthesized images on which networks are compared when there are no data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Heard:
    """Images with what the teachers said of them: all that it takes to judge a target."""

    images: Tensor
    """(N, C, H, W) in [0, 1], or in 8 bits."""
    homes: Tensor
    """(N,) as in `Labelled`."""
    said: dict[str, Tensor]
    """Per teacher (N, K) probabilities."""


@dataclass(frozen=True)
class Contest:
    """What a run is given that is compared with others; it hands out some of its images."""

    probe: Heard | None = None
    """On which all are judged, at their moments and at their end; None while there is none."""


class ProbeSet:
    """Images of several generators, mixed and shifted copies among them; a run's own are never
    trained on. Only the images are kept, their copies are made anew for every look."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._given: Heard | None = None
        self._known: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, images: Tensor, homes: Tensor) -> None:
        """Take one generator's part, (n, C, H, W) in [0, 1], with the homes (n,)."""
        self._parts.append((images.cpu(), homes.cpu()))
        self._known = None

    def add_labelled(self, batch: Labelled) -> None:
        """Take images whose labels are known, instead of all others."""
        said = {
            name: probabilities(batch.logits[name], voice.task)
            for name, voice in self._panel.voices.items()
        }
        self.give(Heard(batch.images, batch.homes, self._by_homes(said, batch.homes)))

    def give(self, heard: Heard) -> None:
        """Be this, and nothing else; nothing is mixed or moved, nobody is asked."""
        self._given, self._known = heard, None

    def heard(self) -> Heard:
        """All images that are looked at, with what the teachers say of them."""
        said, homes = self._said()
        return Heard(torch.cat([packed(images.cpu()) for images, _ in self.looks()]), homes, said)

    def share(self, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` images in 8 bits with their homes, as many of every generator."""
        given = self._given
        parts = self._parts if given is None else [(unpacked(given.images), given.homes)]
        each = max(1, count // len(parts))
        images, homes = (
            torch.cat([part[:each] for part in kind]) for kind in zip(*parts, strict=True)
        )
        return packed(images), homes

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
        if self._given is not None:
            images, homes = self._given.images, self._given.homes
            parts = zip(torch.split(images, STRIDE), torch.split(homes, STRIDE), strict=True)
            yield from ((unpacked(own), of) for own, of in parts)
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
        if self._known is None:
            self._known = self._teachers(target.labels)
        theirs, known, small = self._known
        device = next(target.parameters()).device
        answers = torch.cat([target.predict(images.to(device)).cpu() for images, _ in self.looks()])
        others = any(label not in target.labels for own in self._labels.values() for label in own)
        # A single label is always the top one: only whether it is there can be agreed on.
        nothing = others or len(target.labels) == 1
        return agreement_and_coverage(
            theirs * known, answers * known, small, target.labels, nothing=nothing
        )

    def _teachers(self, labels: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Of all N images what the teachers say (N, C), of which labels that counts (N, C), and the
        images made small and flat."""
        said, homes = self._said()
        theirs = merge(said, self._labels, labels)
        small = torch.cat([_small(images).cpu() for images, _ in self.looks()])
        return theirs, self._counting(homes, labels), small

    def _said(self) -> tuple[dict[str, Tensor], Tensor]:
        """Of all images what the teachers say of them, and their homes."""
        if self._given is not None:
            return self._given.said, self._given.homes
        asked = [(self._ask(images), homes.cpu()) for images, homes in self.looks()]
        said = {name: torch.cat([own[name].cpu() for own, _ in asked]) for name in self._labels}
        return said, torch.cat([homes for _, homes in asked])

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

    def _counting(self, homes: Tensor, labels: list[str]) -> Tensor:
        """(N, C), one where the label is one that the image's home knows."""
        known = torch.ones(len(homes), len(labels))
        for index, voice in enumerate(self._panel.voices.values()):
            own = set(voice.description.spec.labels)
            known[homes.cpu() == index] = torch.tensor([float(label in own) for label in labels])
        return known


def packed(images: Tensor) -> Tensor:
    """Images in [0, 1] in 8 bits."""
    return (images * 255).round().to(torch.uint8)


def unpacked(images: Tensor) -> Tensor:
    """Images in 8 bits, or already in [0, 1], in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


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
