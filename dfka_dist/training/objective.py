"""The generator's whole objective: which term looks at what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights, Task
from dfka_dist.errors import NonFiniteLoss
from dfka_dist.losses import LossReport
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import TeacherDescription, TeacherOutput
from dfka_dist.training.collectives import global_mean, global_sum, rank_and_size
from dfka_dist.training.engines import listened_to

Answers = Mapping[str, TeacherOutput]
"""By teacher."""


@dataclass(frozen=True)
class Heard:
    """Everything that the terms look at; images and answers are leaves that collect gradients."""

    images: Tensor
    """(N, C, H, W) in [0, 1]"""
    noise: Tensor
    """(N, Z) that they were made of."""
    targets: Mapping[str, Tensor] | None
    """Per teacher, the sampled label sets (N, K); None for the teachers' own decisions (eq. 5)."""
    answers: Answers
    """What was said of the images."""
    groups: Sequence[Answers]
    """What was said of group features, in any order."""


def generator_objective(
    heard: Heard,
    teachers: Mapping[str, TeacherDescription],
    student: TargetNet | None,
    weights: LossWeights,
) -> LossReport:
    """The weighted sum of all terms; each is a mean over teachers (and groups).

    Args:
        student: listened to for the disagreement; may be missing if that weighs nothing.
    """
    task: dict[str, Task] = {name: teachers[name].spec.task for name in heard.answers}
    said = {name: answered(answer) for name, answer in heard.answers.items()}
    goal = heard.targets or {n: losses.decisions(logits, task[n]) for n, logits in said.items()}

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean() if values else heard.images.new_zeros(())

    def batch_mean(name: str) -> Tensor:
        return global_mean(losses.probabilities(said[name], task[name]).mean(0))

    return losses.weigh(
        weights,
        {
            # the teachers shall be sure of their labels
            "one_hot": lambda: mean([losses.one_hot(said[n], goal[n], task[n]) for n in said]),
            # the last features shall be strong
            "activation": lambda: mean(
                [
                    losses.activation(a.embedding)
                    for a in heard.answers.values()
                    if a.embedding is not None
                ]
            ),
            # every label shall occur
            "entropy": lambda: mean([losses.entropy(batch_mean(n), task[n]) for n in said]),
            # few labels an image
            "discrete": lambda: mean([losses.discrete(said[n], task[n]) for n in said]),
            # features of every group shall lead where their image leads
            "group": lambda: mean(
                [
                    losses.group(answered(answer), said[n], task[n])
                    for answers in heard.groups
                    for n, answer in answers.items()
                ]
            ),
            # inside the teachers it shall look as it did in their training
            "batch_norm": lambda: mean(
                [statistics(a, teachers[n]) for n, a in heard.answers.items() if teachers[n].layers]
            ),
            # the student shall have something to learn
            "adversarial": lambda: mean(_disagreements(heard.images, said, student)),
            # unlike noise shall give unlike images
            "diversity": lambda: losses.diversity(heard.images, heard.noise),
            # neighbouring pixels shall be alike, and the picture not too bright
            "total_variation": lambda: losses.total_variation(heard.images),
            "l2": lambda: losses.l2(heard.images),
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
    """Stop every rank if a term of any rank is not finite, or their sum by too large weights.

    Raises:
        NonFiniteLoss: naming the terms.
    """
    values = {**report.terms, "the weighted sum": report.total.detach()}
    wrong = torch.stack([~value.isfinite() for value in values.values()]).float()
    if rank_and_size()[1] > 1:
        torch.distributed.all_reduce(wrong)
    names = [name for name, bad in zip(values, wrong.tolist(), strict=True) if bad]
    if names:
        raise NonFiniteLoss(f"the loss is not finite: {', '.join(names[:-1] or names)}")


def answered(answer: TeacherOutput) -> Tensor:
    """The logits (N, K) of an answer, which it has."""
    assert answer.logits is not None
    return answer.logits


def _disagreements(
    images: Tensor, said: Mapping[str, Tensor], student: TargetNet | None
) -> list[Tensor]:
    assert student is not None
    with listened_to(student):
        own = student(images)
    return [losses.adversarial(own[n], said[n][:, student.kept[n]]) for n in own]
