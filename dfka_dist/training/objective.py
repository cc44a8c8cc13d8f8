"""The generator's whole objective: which term looks at what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights
from dfka_dist.errors import NonFiniteLoss
from dfka_dist.losses import LossReport
from dfka_dist.teachers.interface import TeacherDescription, TeacherOutput
from dfka_dist.training.collectives import global_mean, global_sum, rank_and_size
from dfka_dist.training.panel import Voice, answered, taken

Answers = Mapping[str, TeacherOutput]
"""By teacher, each about the images that concern it."""


@dataclass(frozen=True)
class Heard:
    """Everything that the terms look at; images and answers are leaves that collect gradients."""

    images: Tensor
    """(N, C, H, W) in [0, 1]"""
    noise: Tensor
    """(N, Z) that they were made of."""
    rows: Mapping[str, Tensor | None]
    """Per teacher which of the images concern it; None for all."""
    targets: Mapping[str, Tensor | None]
    """Per teacher, the sampled label sets (n, K) of its images; None for its own decisions
    (eq. 5)."""
    answers: Answers
    """What was said of the images."""
    groups: Sequence[Answers]
    """What was said of group features, in any order."""
    opinion: Mapping[str, Tensor]
    """By teacher the student's logits (N, K) of the images, which collect gradients too; none if
    its disagreement is not looked at."""


def generator_objective(
    heard: Heard, voices: Mapping[str, Voice], weights: LossWeights
) -> LossReport:
    """The weighted sum of all terms (eq. 8, 11 and what came later).

    A term about labels is the mean over those that are wanted of all teachers (eq. 10), and that
    about sampled label sets over all that may be asked for; where every image has its home, and for
    all other terms, it is the mean over teachers.
    """
    said = {name: voices[name].heard(answered(a)) for name, a in heard.answers.items()}
    asked = {n: _asked(heard.targets[n], answered(heard.answers[n]), voices[n]) for n in said}
    kept = {name: len(voices[name].kept) for name in said}
    together = all(rows is None for rows in heard.rows.values())

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean() if values else heard.images.new_zeros(())

    def over_labels(term: Callable[[str], Tensor], counts: Mapping[str, int] = kept) -> Tensor:
        own = [counts[name] if together else 1 for name in said]
        return losses.concatenated([term(name) for name in said], own)

    def group(name: str) -> Tensor:
        answers = [voices[name].heard(answered(own[name])) for own in heard.groups if name in own]
        return mean([losses.group(a, said[name], voices[name].task) for a in answers])

    def entropy(name: str) -> Tensor:
        task = voices[name].task
        return losses.entropy(global_mean(losses.probabilities(said[name], task).mean(0)), task)

    return losses.weigh(
        weights,
        {
            # the teachers shall be sure of their labels
            "one_hot": lambda: over_labels(
                lambda n: losses.one_hot(*asked[n], voices[n].task),
                {
                    n: kept[n] if heard.targets[n] is None else own.shape[1]
                    for n, (own, _) in asked.items()
                },
            ),
            # the last features shall be strong
            "activation": lambda: mean(
                [
                    losses.activation(a.embedding)
                    for a in heard.answers.values()
                    if a.embedding is not None
                ]
            ),
            # every label shall occur
            "entropy": lambda: over_labels(entropy),
            # few labels an image
            "discrete": lambda: over_labels(lambda n: losses.discrete(said[n], voices[n].task)),
            # features of every group shall lead where their image leads
            "group": lambda: over_labels(group),
            # inside the teachers it shall look as it did in their training
            "batch_norm": lambda: mean(
                [
                    statistics(answer, voices[name].description)
                    for name, answer in heard.answers.items()
                    if voices[name].description.layers
                ]
            ),
            # the student shall have something to learn
            "adversarial": lambda: mean(_disagreements(heard, voices)),
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


def _asked(targets: Tensor | None, logits: Tensor, voice: Voice) -> tuple[Tensor, Tensor]:
    """What a teacher said, and what it was to say: of all its labels where label sets are sampled,
    for an image may be asked to be of none that is wanted."""
    if targets is None:
        said = voice.heard(logits)
        return said, losses.decisions(said, voice.task)
    return logits, targets


def _disagreements(heard: Heard, voices: Mapping[str, Voice]) -> list[Tensor]:
    return [
        losses.adversarial(taken(heard.opinion[n], heard.rows[n]), voices[n].heard(answered(a)))
        for n, a in heard.answers.items()
    ]
