"""Teachers that are not there: an archive has their answers, the configuration their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.errors import RunFailed
from dfka_dist.models.sources import Weights
from dfka_dist.teachers.interface import Question, TeacherDescription, TeacherOutput
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers


class SilentTeachers:
    """`Teachers` that can be described and give tails of random weights, but answer nothing.

    Can be sent to another process.
    """

    def __init__(self, specs: Sequence[TeacherSpec], weights: Mapping[str, Weights]) -> None:
        self._specs, self._weights = specs, weights

    def __reduce__(self) -> tuple[Any, ...]:
        return SilentTeachers, (self._specs, self._weights)

    def exact(self) -> SilentTeachers:
        """Themselves: nothing is sent."""
        return self

    @property
    def descriptions(self) -> dict[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return self._local.descriptions

    @property
    def waited(self) -> float:
        """Nothing: nobody is asked."""
        return 0.0

    @property
    def waited_beside(self) -> float:
        """Nothing, as `waited`."""
        return 0.0

    @property
    def worked(self) -> None:
        """There is no server."""

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""
        return self._local.tail(teacher, depth)

    def forward(self, question: Question) -> NoReturn:
        """Refuse.

        Raises:
            RunFailed: always.
        """
        raise RunFailed(f"the teachers {', '.join(question.teachers)} are not there to be asked")

    def pullback(self, question: Question, cotangents: Mapping[str, TeacherOutput]) -> NoReturn:
        """Refuse, as `forward`."""
        self.forward(question)

    def drop(self, question: Question) -> None:
        """Nothing was kept."""

    @cached_property
    def _local(self) -> LocalTeachers:
        return LocalTeachers(load_teachers(self._specs, self._weights))
