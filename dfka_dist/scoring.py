"""The score of a target beside its teachers', on the data that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.data import LabelledImages, load_evaluation
from dfka_dist.evaluation import evaluate
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Question, Teachers

Data = list[tuple[LabelledImages, Sequence[str]]]


def load_data(config: RunConfig) -> Data:
    """Every data set of a configuration, with the teachers it is for.

    Raises:
        InputError: one cannot be read.
    """
    known = [label for teacher in config.teachers for label in teacher.labels]
    names = [teacher.name for teacher in config.teachers]
    return [
        (load_evaluation(name, spec, known), names if spec.teachers == "all" else spec.teachers)
        for name, spec in config.evaluations.items()
    ]


def score(data: Data, teachers: Teachers, target: TargetNet) -> dict[str, Any] | None:
    """The `evaluation` of a result, in fp32; None without data.

    Args:
        target: in eval mode.
    """
    specs = {name: description.spec for name, description in teachers.descriptions.items()}
    kept = {branch.teacher.name: branch.labels for branch in target.design.branches}

    def ask_teachers(images: Tensor) -> dict[str, Tensor]:
        answers = teachers.forward(Question(images, tuple(specs))).result()
        return {
            n: probabilities(a.logits, specs[n].task)
            for n, a in answers.items()
            if a.logits is not None
        }

    def ask_target(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                name: probabilities(own, specs[name].task) for name, own in target(images).items()
            }

    labels = {name: spec.labels for name, spec in specs.items()}
    return evaluate(data, labels, kept, target.labels, ask_teachers, ask_target)
