"""One step of the generator: make images, let the teachers criticise them, learn from it.

Three calls, so that others can work while the teachers do: `ask`, `criticise`, `learn`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfka_dist.config import LossWeights, Precision
from dfka_dist.losses import LossReport
from dfka_dist.models.generator import Stack
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Pending,
    Question,
    TeacherOutput,
    Teachers,
    Wanted,
)
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.objective import Heard, answered, generator_objective, refuse_non_finite


@dataclass(frozen=True)
class Asked:
    """A question that is out."""

    question: Question
    answer: Pending[dict[str, TeacherOutput]]


@dataclass(frozen=True)
class SynthesizedBatch:
    """What the generator made, with the questions that are out about it."""

    stack: Stack
    noise: Tensor
    """(N, Z)"""
    targets: dict[str, Tensor] | None
    """Per teacher, the sampled label sets (N, K); None for the teachers' own decisions (eq. 5)."""
    image: Asked
    groups: list[Asked]
    """Per group one for all teachers of the generator's own shape, and one for each other."""


@dataclass(frozen=True)
class Criticism:
    """What was said of a batch, and the gradients that are on their way back."""

    report: LossReport
    labelled: Labelled
    image_gradient: Tensor | None
    """(N, C, H, W) from terms that look at the images here."""
    of_image: Pending[dict[str, InputGradient]]
    of_groups: list[Pending[dict[str, InputGradient]]]


class Synthesis:
    """The generator's side of the game."""

    def __init__(
        self, *, engine: Engine, teachers: Teachers, weights: LossWeights, precision: Precision
    ) -> None:
        self.engine = engine
        self._teachers = teachers
        self._weights = weights
        self._precision = precision
        self._names = tuple(teachers.descriptions)

    def ask(
        self, noise: Tensor, asked_for: Tensor, targets: dict[str, Tensor] | None
    ) -> SynthesizedBatch:
        """Make a batch and ask all teachers about its images and, for eq. 11, its group features.

        Args:
            noise: (N, Z), standard normal.
            asked_for: (N, C) label sets in the order of the customised labels.
            targets: the same per teacher; None for the teachers' own decisions.
        """
        stack: Stack = self.engine(noise, asked_for)
        wanted = Wanted(
            embedding=bool(self._weights.activation),
            sums=bool(self._weights.batch_norm),
            gradient=True,
        )
        about = [Question(stack.images.detach(), self._names, wanted, precision=self._precision)]
        if self._weights.group:
            about += self._group_questions(stack)
        first, *rest = [Asked(question, self._teachers.forward(question)) for question in about]
        return SynthesizedBatch(stack, noise, targets, first, rest)

    def criticise(
        self, batch: SynthesizedBatch, student: TargetNet | None, weights: LossWeights
    ) -> Criticism:
        """Await the answers, take the losses, and send the cotangents back.

        Args:
            student: listened to for the disagreement.
            weights: of this step; a term that is zero in the first weights must be zero here.

        Raises:
            NonFiniteLoss: on every rank, before anything moved.
        """
        images = batch.stack.images.detach().requires_grad_()
        answers, *groups = [_leaves(asked) for asked in (batch.image, *batch.groups)]
        heard = Heard(images, batch.noise, batch.targets, answers, groups)
        report = generator_objective(heard, self._teachers.descriptions, student, weights)
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        first, *rest = [
            self._pull(asked.question, leaves)
            for asked, leaves in zip((batch.image, *batch.groups), (answers, *groups), strict=True)
        ]
        logits = {name: answered(answer).detach() for name, answer in answers.items()}
        return Criticism(report, Labelled(images.detach(), logits), images.grad, first, rest)

    def learn(self, batch: SynthesizedBatch, criticism: Criticism, rate: float) -> None:
        """Await the gradients and step the generator."""
        collected = _Cotangents()
        for got in criticism.of_image.result().values():
            collected.add(batch.stack.images, got.inputs)
        if criticism.image_gradient is not None:
            collected.add(batch.stack.images, criticism.image_gradient)
        for asked, pending in zip(batch.groups, criticism.of_groups, strict=True):
            group = len(batch.stack.features) - asked.question.depth
            for name, got in pending.result().items():
                adapted = batch.stack.adapted[group]
                collected.add(adapted.get(name, batch.stack.features[group]), got.inputs)
                assert got.gate is not None
                collected.add(batch.stack.gates[group][name], got.gate)
        self.engine.step(*collected.pairs(), rate)

    def _group_questions(self, stack: Stack) -> list[Question]:
        questions = []
        for group, feature in enumerate(stack.features):
            alike = tuple(name for name in self._names if name not in stack.adapted[group])
            inputs = [(alike, feature)] if alike else []
            inputs += [((name,), own) for name, own in stack.adapted[group].items()]
            questions += [self._about_group(stack, group, *pair) for pair in inputs]
        return questions

    def _about_group(
        self, stack: Stack, group: int, names: tuple[str, ...], feature: Tensor
    ) -> Question:
        return Question(
            feature.detach(),
            names,
            Wanted(gradient=True),
            depth=len(stack.features) - group,  # group j lies at teacher depth B - j
            gates={name: stack.gates[group][name].detach() for name in names},
            precision=self._precision,
        )

    def _pull(
        self, question: Question, leaves: dict[str, TeacherOutput]
    ) -> Pending[dict[str, InputGradient]]:
        cotangents = {name: _collected(leaf) for name, leaf in leaves.items()}
        return self._teachers.pullback(question, cotangents)


class _Cotangents:
    """Gradients of the generator's outputs, added up in the order in which they are given."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, output: Tensor, gradient: Tensor) -> None:
        before = self._sums.get(id(output))
        self._sums[id(output)] = (output, gradient if before is None else before[1] + gradient)

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        return [o for o, _ in self._sums.values()], [g for _, g in self._sums.values()]


def _leaves(asked: Asked) -> dict[str, TeacherOutput]:
    """The answers, to collect gradients in."""
    return {name: _leaf(answer) for name, answer in asked.answer.result().items()}


def _leaf(answer: TeacherOutput) -> TeacherOutput:
    sums = answer.sums
    if sums is not None:
        sums = BatchNormSums(sums.count, sums.first.requires_grad_(), sums.second.requires_grad_())
    embedding = answer.embedding
    return TeacherOutput(
        answered(answer).requires_grad_(),
        None if embedding is None else embedding.requires_grad_(),
        sums,
    )


def _collected(leaf: TeacherOutput) -> TeacherOutput:
    """The cotangents; zero logits where nothing came, so that there is always something."""
    logits, sums, embedding = answered(leaf), leaf.sums, leaf.embedding
    cotangents = None
    if sums is not None and sums.first.grad is not None and sums.second.grad is not None:
        cotangents = BatchNormSums(sums.count, sums.first.grad, sums.second.grad)
    return TeacherOutput(
        torch.zeros_like(logits) if logits.grad is None else logits.grad,
        None if embedding is None else embedding.grad,
        cotangents,
    )
