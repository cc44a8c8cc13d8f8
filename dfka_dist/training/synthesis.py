"""One step of the generator: make images, let the teachers criticise them, learn from it.

Four calls, so that others can work while the teachers do: `ask`, `hear`, `criticise`, `learn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dfka_dist.config import LossWeights
from dfka_dist.losses import LossReport
from dfka_dist.models.filters import Filtered
from dfka_dist.models.generator import Stack
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Pending,
    TeacherOutput,
    Wanted,
)
from dfka_dist.training.altering import moved
from dfka_dist.training.draws import Drawn
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.objective import Heard, generator_objective, refuse_non_finite
from dfka_dist.training.panel import Asked, Cotangents, Panel, answered, spread, taken
from dfka_dist.training.turns import listened_to

Answers = dict[str, TeacherOutput]


@dataclass(frozen=True)
class SynthesizedBatch:
    """What the generator made, with the questions that are out about it."""

    stack: Stack
    """The images as they are shown."""
    drawn: Drawn
    image: list[Asked]
    groups: list[list[Asked]]
    """Per group 1..B-1."""


@dataclass(frozen=True)
class HeardBatch:
    """What was said of a batch."""

    heard: Heard
    labelled: Labelled
    """The images with the answers, for the student."""
    image: list[Answers]
    groups: list[list[Answers]]
    """Leaves that collect gradients, question by question."""
    opinion: dict[str, Tensor]
    """The student's, whose leaves are those of `heard`."""


@dataclass(frozen=True)
class Criticism:
    """The losses of a batch, and the gradients that are on their way back."""

    report: LossReport
    image_gradient: Tensor | None
    """(N, C, H, W) from terms that look at the images here."""
    of_image: list[Pending[dict[str, InputGradient]]]
    of_groups: list[list[Pending[dict[str, InputGradient]]]]


class Synthesis:
    """The generator's side of the game.

    Args:
        jitter: see `altering.moved`. Images are shown moved (DeepInversion's jitter, Yin et al.,
            CVPR 2020): a label that hangs on one place of the picture, as no real one does, is lost
            on the way.
    """

    def __init__(
        self, *, engine: Engine, panel: Panel, weights: LossWeights, jitter: float = 0.0
    ) -> None:
        self.engine, self.panel, self._weights, self._jitter = engine, panel, weights, jitter

    def ask(self, drawn: Drawn) -> SynthesizedBatch:
        """Make a batch and ask all teachers about its images and, for eq. 11, group features."""
        self.engine.network.train()
        stack = self._shown(self.engine(drawn.noise, drawn.asked_for), drawn.moves)
        wanted = Wanted(
            embedding=bool(self._weights.activation),
            sums=bool(self._weights.batch_norm),
            gradient=True,
        )
        image = self.panel.about_images(stack.images.detach(), self.panel.homes, wanted)
        groups = self._about_groups(stack) if self._weights.group else []
        return SynthesizedBatch(stack, drawn, image, groups)

    def hear(
        self, batch: SynthesizedBatch, student: TargetNet | None, weights: LossWeights
    ) -> HeardBatch:
        """Await the answers; the student, if it counts, is listened to meanwhile.

        Args:
            weights: of this step; a term that is zero in the first weights must be zero here.
        """
        images = batch.stack.images.detach().requires_grad_()
        opinion = _opinion(student, images) if weights.adversarial else {}
        answers = [_leaves(asked) for asked in batch.image]
        groups = [[_leaves(asked) for asked in group] for group in batch.groups]
        rows = {n: asked.rows for asked in batch.image for n in asked.question.teachers}
        heard = Heard(
            images,
            batch.drawn.noise,
            rows,
            {n: t if t is None else taken(t, rows[n]) for n, t in batch.drawn.targets.items()},
            _merged(answers),
            [_merged(group) for group in groups],
            {n: logits.detach().requires_grad_() for n, logits in opinion.items()},
        )
        labelled = self._labelled(images.detach(), rows, heard.answers)
        return HeardBatch(heard, labelled, answers, groups, opinion)

    def criticise(
        self, batch: SynthesizedBatch, said: HeardBatch, weights: LossWeights
    ) -> Criticism:
        """Take the losses, and send the cotangents back.

        Args:
            weights: as they were for `hear`.

        Raises:
            NonFiniteLoss: on every rank, before anything moved.
        """
        report = generator_objective(said.heard, self.panel.voices, weights)
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        of_image = self._pulled(batch.image, said.image)
        of_groups = [self._pulled(*pair) for pair in zip(batch.groups, said.groups, strict=True)]
        # While the teachers carry theirs back.
        leaves = [said.heard.opinion[name].grad for name in said.opinion]
        torch.autograd.backward(list(said.opinion.values()), leaves)
        return Criticism(report, said.heard.images.grad, of_image, of_groups)

    def learn(self, batch: SynthesizedBatch, criticism: Criticism, rate: float) -> None:
        """Await the gradients and step the generator."""
        collected = Cotangents()
        for asked, pending in zip(batch.image, criticism.of_image, strict=True):
            for got in pending.result().values():
                collected.add(batch.stack.images, got.inputs, asked.rows)
        if criticism.image_gradient is not None:
            collected.add(batch.stack.images, criticism.image_gradient)
        for feature, group, back in zip(
            batch.stack.features, batch.groups, criticism.of_groups, strict=False
        ):
            for asked, on_its_way in zip(group, back, strict=True):
                collected.add_feature(feature, asked, on_its_way.result())
        self.engine.step(*collected.pairs(), rate)

    def _shown(self, stack: Stack, moves: Tensor | None) -> Stack:
        if moves is None:
            return stack
        return stack._replace(images=moved(stack.images, moves, self._jitter))

    def _about_groups(self, stack: Stack) -> list[list[Asked]]:
        depth = len(stack.features) + 1
        descriptions = self.panel.teachers.descriptions
        asked = []
        for index, feature in enumerate(stack.features):
            # group j lies at depth B - j of the reference
            entries = {n: descriptions[n].matching(depth - index - 1, depth) for n in descriptions}
            asked.append(self._about_group(feature, entries))
        return asked

    def _about_group(self, feature: Filtered, entries: Mapping[str, int]) -> list[Asked]:
        return self.panel.about_features(feature, self.panel.homes, entries, Wanted(gradient=True))

    def _pulled(
        self, asked: list[Asked], leaves: list[Answers]
    ) -> list[Pending[dict[str, InputGradient]]]:
        return [
            self.panel.teachers.pullback(
                each.question, {name: cotangents(leaf) for name, leaf in own.items()}
            )
            for each, own in zip(asked, leaves, strict=True)
        ]

    def _labelled(
        self, images: Tensor, rows: Mapping[str, Tensor | None], said: Mapping[str, TeacherOutput]
    ) -> Labelled:
        logits = {
            name: spread(answered(said[name]).detach(), rows[name], len(images))
            for name in self.panel.voices
        }
        return Labelled(images, logits, self.panel.homes)


def _opinion(student: TargetNet | None, images: Tensor) -> dict[str, Tensor]:
    assert student is not None, "the disagreement with nobody has a weight"
    with listened_to(student):
        own: dict[str, Tensor] = student(images)
    return own


def leaf(answer: TeacherOutput) -> TeacherOutput:
    """An answer, to collect gradients in."""
    sums = answer.sums
    if sums is not None:
        sums = BatchNormSums(sums.count, sums.first.requires_grad_(), sums.second.requires_grad_())
    embedding = answer.embedding
    return TeacherOutput(
        answered(answer).requires_grad_(),
        None if embedding is None else embedding.requires_grad_(),
        sums,
    )


def cotangents(leaf: TeacherOutput) -> TeacherOutput:
    """What was collected; zero logits where nothing came, so that there is always something."""
    logits, sums, embedding = answered(leaf), leaf.sums, leaf.embedding
    collected = None
    if sums is not None and sums.first.grad is not None and sums.second.grad is not None:
        collected = BatchNormSums(sums.count, sums.first.grad, sums.second.grad)
    return TeacherOutput(
        torch.zeros_like(logits) if logits.grad is None else logits.grad,
        None if embedding is None else embedding.grad,
        collected,
    )


def _leaves(asked: Asked) -> Answers:
    return {name: leaf(answer) for name, answer in asked.answer.result().items()}


def _merged(answers: list[Answers]) -> Answers:
    return {name: answer for own in answers for name, answer in own.items()}
