"""The score of a target beside its teachers', on the data that a configuration names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.data import LabelledImages, load_evaluation
from dfka_dist.evaluation import evaluate
from dfka_dist.losses import probabilities
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Question, Teachers

Data = list[tuple[LabelledImages, Sequence[str]]]

ALONE = "evaluations: no teacher is there to be scored beside, so the target is scored alone"


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


class Scorer:
    """Scores targets beside their teachers, who are asked about each image once, however many
    targets there are; alone, where there are no teachers."""

    def __init__(self, data: Data, teachers: Teachers | None) -> None:
        self._data, self._teachers = data, teachers
        known = {} if teachers is None else teachers.descriptions
        self._specs = {name: each.spec for name, each in known.items()}
        self._said: list[dict[str, Tensor]] = []
        """Of every batch, in the order in which `evaluate` asks; that is always the same."""

    def score(self, target: TargetNet) -> dict[str, Any] | None:
        """The `evaluation` of a result, in fp32; None without data.

        Args:
            target: in eval mode.
        """
        turn = itertools.count()
        specs = {branch.teacher.name: branch.teacher for branch in target.design.branches}
        labels = {name: spec.labels for name, spec in (specs | self._specs).items()}

        def ask_teachers(images: Tensor) -> dict[str, Tensor]:
            batch = next(turn)
            if batch == len(self._said):
                self._said.append(self._ask(images))
            return self._said[batch]

        def ask_target(images: Tensor) -> dict[str, Tensor]:
            return target.probabilities(images)

        kept = {branch.teacher.name: branch.labels for branch in target.design.branches}
        ask = None if self._teachers is None else ask_teachers
        return evaluate(self._data, labels, kept, target.labels, ask, ask_target)

    def _ask(self, images: Tensor) -> dict[str, Tensor]:
        assert self._teachers is not None
        answers = self._teachers.forward(Question(images, tuple(self._specs))).result()
        return {
            name: probabilities(answer.logits, self._specs[name].task)
            for name, answer in answers.items()
            if answer.logits is not None
        }
