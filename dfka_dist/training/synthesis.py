"""One step of the generator: make images, let the teachers criticise them, carry the criticism
back.

Three calls, so that others can work while the teachers do: `ask`, `criticise`, `learn`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights, Precision, Task
from dfka_dist.errors import NonFiniteLoss
from dfka_dist.losses import LossReport
from dfka_dist.models.generator import Stack
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Pending,
    Question,
    TeacherDescription,
    TeacherOutput,
    Teachers,
    Wanted,
)
from dfka_dist.training.collectives import global_mean, global_sum, rank_and_size
from dfka_dist.training.engines import Engine, listened_to
from dfka_dist.training.memory import Labelled


@dataclass(frozen=True)
class SynthesizedBatch:
    """What the generator made, with the questions that are out about it."""

    stack: Stack
    noise: Tensor
    """(N, Z)"""
    targets: dict[str, Tensor] | None
    """Per teacher, the sampled label sets (N, K); None for the teachers' own decisions (eq. 5)."""
    image_question: Question
    image_answer: Pending[dict[str, TeacherOutput]]
    group_questions: list[list[Question]]
    """Per group: one for all teachers of the generator's own shape, one for each other."""
    group_answers: list[list[Pending[dict[str, TeacherOutput]]]]


@dataclass(frozen=True)
class Criticism:
    """What was said of a batch, and the gradients that are on their way back."""

    report: LossReport
    labelled: Labelled
    image_gradient: Tensor | None
    """(N, C, H, W) from terms that look at the images here."""
    pullbacks: list[tuple[Question, Pending[dict[str, InputGradient]]]]


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
            noise: (N, Z); `asked_for`: (N, C) label sets in the order of the customised labels.
        """
        stack: Stack = self.engine(noise, asked_for)
        wanted = Wanted(
            embedding=bool(self._weights.activation),
            sums=bool(self._weights.batch_norm),
            gradient=True,
        )
        image = Question(stack.images.detach(), self._names, wanted, precision=self._precision)
        image_answer = self._teachers.forward(image)
        groups = self._group_questions(stack) if self._weights.group else []
        answers = [
            [self._teachers.forward(question) for question in questions] for questions in groups
        ]
        return SynthesizedBatch(stack, noise, targets, image, image_answer, groups, answers)

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
        answers = {name: _leaf(answer) for name, answer in batch.image_answer.result().items()}
        groups = [
            [{name: _leaf(answer) for name, answer in pending.result().items()} for pending in row]
            for row in batch.group_answers
        ]
        report = self._report(batch, images, answers, groups, student, weights)
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        sent = [(batch.image_question, answers)]
        sent += [
            pair
            for qs, row in zip(batch.group_questions, groups, strict=True)
            for pair in zip(qs, row, strict=True)
        ]
        pullbacks = [(question, self._pull(question, leaves)) for question, leaves in sent]
        labelled = Labelled(images.detach(), {n: _logits(a).detach() for n, a in answers.items()})
        return Criticism(report, labelled, images.grad, pullbacks)

    def learn(self, batch: SynthesizedBatch, criticism: Criticism, rate: float) -> None:
        """Await the gradients and step the generator."""
        stack, (first, *rest) = batch.stack, criticism.pullbacks
        gradient = torch.stack([g.inputs for g in first[1].result().values()]).sum(0)
        if criticism.image_gradient is not None:
            gradient = gradient + criticism.image_gradient
        outputs, cotangents = [stack.images], [gradient]
        features: dict[int, Tensor] = {}
        for question, pending in rest:
            index = self._group_of(question, stack)
            for name, got in pending.result().items():
                outputs.append(stack.gates[index][name])
                assert got.gate is not None
                cotangents.append(got.gate)
                if name in stack.adapted[index]:
                    outputs.append(stack.adapted[index][name])
                    cotangents.append(got.inputs)
                else:
                    features[index] = (
                        features[index] + got.inputs if index in features else got.inputs
                    )
        for index, total in features.items():
            outputs.append(stack.features[index])
            cotangents.append(total)
        self.engine.step(outputs, cotangents, rate)

    def _group_questions(self, stack: Stack) -> list[list[Question]]:
        rows = []
        for index, feature in enumerate(stack.features):
            depth = len(stack.features) - index  # group j at teacher depth B - j
            shared = tuple(name for name in self._names if name not in stack.adapted[index])
            inputs = [(shared, feature)] if shared else []
            inputs += [((name,), own) for name, own in stack.adapted[index].items()]
            rows.append(
                [
                    Question(
                        value.detach(),
                        names,
                        Wanted(gradient=True),
                        depth=depth,
                        gates={name: stack.gates[index][name].detach() for name in names},
                        precision=self._precision,
                    )
                    for names, value in inputs
                ]
            )
        return rows

    def _group_of(self, question: Question, stack: Stack) -> int:
        return len(stack.features) - question.depth

    def _pull(
        self, question: Question, leaves: Mapping[str, TeacherOutput]
    ) -> Pending[dict[str, InputGradient]]:
        return self._teachers.pullback(
            question, {name: _cotangents(leaf) for name, leaf in leaves.items()}
        )

    def _report(
        self,
        batch: SynthesizedBatch,
        images: Tensor,
        answers: Mapping[str, TeacherOutput],
        groups: Sequence[Sequence[Mapping[str, TeacherOutput]]],
        student: TargetNet | None,
        weights: LossWeights,
    ) -> LossReport:
        """The generator's whole objective."""
        known = self._teachers.descriptions
        task: dict[str, Task] = {name: known[name].spec.task for name in answers}
        logits = {name: _logits(answer) for name, answer in answers.items()}
        goal = batch.targets or {
            name: losses.decisions(value, task[name]) for name, value in logits.items()
        }

        def over_teachers(values: list[Tensor]) -> Tensor:
            return torch.stack(values).mean()

        def batch_mean(name: str) -> Tensor:
            return global_mean(losses.probabilities(logits[name], task[name]).mean(0))

        def disagreement() -> Tensor:
            assert student is not None
            with listened_to(student):
                said = student(images)
            return over_teachers(
                [losses.adversarial(said[n], logits[n][:, student.kept[n]]) for n in said]
            )

        return losses.weigh(
            weights,
            {
                # the teachers shall be sure of their labels
                "one_hot": lambda: over_teachers(
                    [losses.one_hot(logits[n], goal[n], task[n]) for n in logits]
                ),
                # the last features shall be strong
                "activation": lambda: over_teachers([_activation(a) for a in answers.values()]),
                # every label shall occur
                "entropy": lambda: over_teachers(
                    [losses.entropy(batch_mean(n), task[n]) for n in logits]
                ),
                # few labels an image
                "discrete": lambda: over_teachers(
                    [losses.discrete(logits[n], task[n]) for n in logits]
                ),
                # features of every group shall lead where their image leads
                "group": lambda: over_teachers(
                    [
                        losses.group(_logits(a), logits[name], task[name])
                        for row in groups
                        for question in row
                        for name, a in question.items()
                    ]
                ),
                # inside the teachers it shall look as it did in training
                "batch_norm": lambda: over_teachers(
                    [statistics(answers[n], known[n]) for n in answers if known[n].layers]
                ),
                # the student shall learn something
                "adversarial": disagreement,
                # unlike noise shall give unlike images
                "diversity": lambda: losses.diversity(images, batch.noise),
                "total_variation": lambda: losses.total_variation(images),
                "l2": lambda: losses.l2(images),
            },
        )


def statistics(answer: TeacherOutput, teacher: TeacherDescription) -> Tensor:
    """`losses.batch_norm` of an answer's sums, added up over all workers."""
    sums = answer.sums
    assert sums is not None
    return losses.batch_norm(
        global_sum(sums.count),
        global_sum(sums.first),
        global_sum(sums.second),
        teacher.running_var.to(sums.first),
        [layer.channels for layer in teacher.layers],
    )


def refuse_non_finite(report: LossReport) -> None:
    """Stop every rank if a term of any rank is not finite.

    Raises:
        NonFiniteLoss: naming the terms.
    """
    values = torch.stack(list(report.terms.values())).float()
    wrong = (~values.isfinite()).float()
    if rank_and_size()[1] > 1:
        torch.distributed.all_reduce(wrong)
    if wrong.any():
        names = [name for name, bad in zip(report.terms, wrong.tolist(), strict=True) if bad]
        raise NonFiniteLoss(f"the loss is not finite: {', '.join(names)}")


def _logits(answer: TeacherOutput) -> Tensor:
    assert answer.logits is not None
    return answer.logits


def _activation(answer: TeacherOutput) -> Tensor:
    assert answer.embedding is not None
    return losses.activation(answer.embedding)


def _leaf(answer: TeacherOutput) -> TeacherOutput:
    sums = answer.sums
    return TeacherOutput(
        _logits(answer).requires_grad_(),
        None if answer.embedding is None else answer.embedding.requires_grad_(),
        sums
        and BatchNormSums(sums.count, sums.first.requires_grad_(), sums.second.requires_grad_()),
    )


def _cotangents(leaf: TeacherOutput) -> TeacherOutput:
    """What came out of the loss's backward; zero logits where nothing did, so that there is a
    gradient."""
    logits = _logits(leaf)
    sums, none = leaf.sums, None
    return TeacherOutput(
        logits.grad if logits.grad is not None else torch.zeros_like(logits),
        none if leaf.embedding is None else leaf.embedding.grad,
        none
        if sums is None or sums.first.grad is None or sums.second.grad is None
        else BatchNormSums(sums.count, sums.first.grad, sums.second.grad),
    )
