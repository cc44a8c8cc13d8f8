"""The teachers as one run hears them: which labels count, and which images concern whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from dfka_dist.config import Precision, RunConfig, Task
from dfka_dist.models.filters import Filtered
from dfka_dist.teachers.interface import (
    InputGradient,
    Pending,
    Question,
    TeacherDescription,
    TeacherOutput,
    Teachers,
    Wanted,
)
from dfka_dist.training.memory import Labelled


@dataclass(frozen=True)
class Voice:
    """One teacher, and which of its labels are wanted."""

    description: TeacherDescription
    kept: tuple[int, ...]
    """Columns of the customised labels."""

    @property
    def task(self) -> Task:
        """Single- or multi-label."""
        return self.description.spec.task

    def heard(self, logits: Tensor) -> Tensor:
        """What is learned from (g_m of eq. 13): the wanted labels; of a single-label teacher all,
        for an image of something else must not pass for one of the wanted."""
        if self.task == "single_label" or len(self.kept) == logits.shape[1]:
            return logits
        return logits[:, list(self.kept)]


@dataclass(frozen=True)
class Asked:
    """A question that is out, about some images of a batch."""

    question: Question
    rows: Tensor | None
    """Which images; None for all."""
    answer: Pending[dict[str, TeacherOutput]]


class Panel:
    """All teachers of a run, each asked about the images that concern it.

    Args:
        columns: global sample indices, within a batch, of this worker.
    """

    def __init__(
        self, config: RunConfig, teachers: Teachers, columns: range, precision: Precision
    ) -> None:
        self.teachers, self._precision = teachers, precision
        self.voices = {
            name: Voice(own, _columns(own, config.labels))
            for name, own in teachers.descriptions.items()
        }
        self._has_homes = config.has_homes and config.training.recipe != "distill"
        self.homes = self.homes_of(columns)
        """(N,) of the images that are synthesized here, as in `Labelled`."""

    def homes_of(self, columns: range) -> Tensor:
        """(len(columns),) of synthesized images by their index within the batch.

        A function of the column: it needs neither be drawn nor sent to anybody.
        """
        if not self._has_homes:
            return torch.full((len(columns),), -1)
        return torch.arange(columns.start, columns.stop) // 2 % len(self.voices)

    def rows(self, name: str, homes: Tensor) -> Tensor | None:
        """Which images concern a teacher; None for all.

        Args:
            homes: (N,) as in `Labelled`.
        """
        if not (homes >= 0).any():
            return None
        own = homes == list(self.voices).index(name)
        return (own | (homes < 0)).nonzero()[:, 0]

    def pools(self, labels: list[str], wanted: int) -> list[list[int]]:
        """Labels that may be asked of one image: all, or by home teacher those it knows.

        Args:
            wanted: how many of them, from the first, are wanted: each as often as any other, and
                all together for half of the images at least.
        """
        if not self._has_homes:
            return [_in_turn(range(len(labels)), wanted)]
        known = [voice.description.spec.labels for voice in self.voices.values()]
        return [
            _in_turn([i for i, label in enumerate(labels) if label in own], wanted) for own in known
        ]

    def about_images(
        self, images: Tensor, homes: Tensor, wanted: Wanted, names: Iterable[str] | None = None
    ) -> list[Asked]:
        """Ask about images (N, C, H, W) with their homes (N,).

        Args:
            names: who is asked; None for all.
        """
        return [
            self._ask(Question(taken(images, rows), own, wanted, precision=self._precision), rows)
            for own, rows in self._concerned(self.voices if names is None else names, homes)
        ]

    def about_features(
        self, filtered: Filtered, homes: Tensor, entries: Mapping[str, int], wanted: Wanted
    ) -> list[Asked]:
        """Ask the teachers' tails about a feature (eq. 12), which travels once if it can.

        Args:
            entries: the depth at which each teacher goes on; those without one are not asked.
        """

        def kind(name: str) -> tuple[str, int]:
            return (name if name in filtered.adapted else "", entries[name])

        asked = []
        those = [name for name in filtered.gates if name in entries]
        for _, alike in groupby(sorted(those, key=kind), key=kind):
            for names, rows in self._concerned(list(alike), homes):
                question = Question(
                    taken(filtered.form(names[0]).detach(), rows),
                    names,
                    wanted,
                    depth=entries[names[0]],
                    gates={n: taken(filtered.gates[n].detach(), rows) for n in names},
                    precision=self._precision,
                )
                asked.append(self._ask(question, rows))
        return asked

    def labelled(
        self, images: Tensor, homes: Tensor, names: Iterable[str] | None = None
    ) -> Pending[Labelled]:
        """Ask what every teacher says of images, to learn from it.

        Args:
            names: who is asked; None for all. The others say zeros.
        """
        return _Labelling(self, images, homes, names)

    def _concerned(
        self, names: Iterable[str], homes: Tensor
    ) -> Iterator[tuple[tuple[str, ...], Tensor | None]]:
        """Teachers that are asked about the same rows, with these."""
        if not (homes >= 0).any():
            yield tuple(names), None
            return
        for name in names:
            yield (name,), self.rows(name, homes)

    def _ask(self, question: Question, rows: Tensor | None) -> Asked:
        return Asked(question, rows, self.teachers.forward(question))


class _Labelling:
    """Images whose labels are on their way."""

    def __init__(
        self, panel: Panel, images: Tensor, homes: Tensor, names: Iterable[str] | None
    ) -> None:
        self._voices, self._images, self._homes = panel.voices, images, homes
        self._asked = panel.about_images(images, homes, Wanted(), names)

    def result(self) -> Labelled:
        """Wait for all teachers."""
        answers = [(each.rows, each.answer.result()) for each in self._asked]
        logits = {
            name: spread(answered(answer), rows, len(self._images))
            for rows, own in answers
            for name, answer in own.items()
        }
        said = {
            name: logits[name] if name in logits else self._nothing(voice)
            for name, voice in self._voices.items()
        }
        return Labelled(self._images, said, self._homes)

    def _nothing(self, voice: Voice) -> Tensor:
        labels = voice.description.spec.labels
        return self._images.new_zeros(len(self._images), len(labels))


class Cotangents:
    """Gradients of a network's outputs, added up in the order in which they are given."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, output: Tensor, gradient: Tensor, rows: Tensor | None = None) -> None:
        """A gradient of an output, or of some of its rows."""
        gradient = spread(gradient, rows, len(output))
        before = self._sums.get(id(output))
        self._sums[id(output)] = (output, gradient if before is None else before[1] + gradient)

    def add_feature(
        self, filtered: Filtered, asked: Asked, got: Mapping[str, InputGradient]
    ) -> None:
        """What came back about a feature, for its form and its gates."""
        for name, gradient in got.items():
            self.add(filtered.form(name), gradient.inputs, asked.rows)
            assert gradient.gate is not None
            self.add(filtered.gates[name], gradient.gate, asked.rows)

    def add_nothing(self, filtered: Filtered, names: Iterable[str]) -> None:
        """Zeros for the form and gates of teachers that were not asked."""
        for name in names:
            for output in (filtered.form(name), filtered.gates[name]):
                self._sums.setdefault(id(output), (output, torch.zeros_like(output)))

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs, and their gradients."""
        return [o for o, _ in self._sums.values()], [g for _, g in self._sums.values()]


def answered(answer: TeacherOutput) -> Tensor:
    """The logits (N, K) of an answer, which it has."""
    assert answer.logits is not None
    return answer.logits


def spread(values: Tensor, rows: Tensor | None, length: int) -> Tensor:
    """(length, ...) with the values in their rows and zero elsewhere."""
    if rows is None:
        return values
    return values.new_zeros(length, *values.shape[1:]).index_copy(0, rows.to(values.device), values)


def taken(values: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of a batch, or all of them."""
    return values if rows is None else values[rows]


def _columns(description: TeacherDescription, wanted: list[str]) -> tuple[int, ...]:
    labels = description.spec.labels
    return tuple(index for index, label in enumerate(labels) if label in wanted)


def _in_turn(labels: Iterable[int], wanted: int) -> list[int]:
    """Labels in the order in which images are asked for them, some more than once."""
    own: list[int] = []
    others: list[int] = []
    for label in labels:
        (own if label < wanted else others).append(label)
    if len(others) <= len(own):
        return own + others
    return [label for pair in zip(itertools.cycle(own), others, strict=False) for label in pair]
