"""Teachers that are asked about a batch in parts, so that no graph of the whole ever exists.

Sums and logits of all parts are there before the loss is taken, which is then the whole batch's;
its cotangents go back part by part. A part's graph is kept as far as the cache of whoever computes
it reaches, and made again otherwise: memory is bounded by that cache and one part at work.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dfka_dist.teachers.interface import (
    InputGradient,
    Pending,
    Question,
    TeacherDescription,
    TeacherOutput,
    Teachers,
)

Answer = TypeVar("Answer")


def in_parts(teachers: Teachers, rows: int | None) -> Teachers:
    """The teachers, asked about so many images at once; as they are where that is None."""
    return teachers if rows is None else MicroBatchedTeachers(teachers, rows)


class MicroBatchedTeachers:
    """`Teachers` in front of others, who are asked about at most `rows` images at once."""

    def __init__(self, teachers: Teachers, rows: int) -> None:
        self._teachers, self._rows = teachers, rows
        self._parts: dict[str, list[Question]] = {}

    @property
    def descriptions(self) -> Mapping[str, TeacherDescription]:
        """See `Teachers.descriptions`."""
        return self._teachers.descriptions

    @property
    def waited(self) -> float:
        """See `Teachers.waited`."""
        return self._teachers.waited

    @property
    def waited_beside(self) -> float:
        """See `Teachers.waited_beside`."""
        return self._teachers.waited_beside

    @property
    def worked(self) -> float | None:
        """See `Teachers.worked`."""
        return self._teachers.worked

    def forward(self, question: Question) -> Pending[dict[str, TeacherOutput]]:
        """See `Teachers.forward`."""
        if len(question.inputs) <= self._rows:
            return self._teachers.forward(question)
        parts = self._divided(question)
        if question.wanted.gradient:
            self._parts[question.key] = parts
        return _Joined([self._teachers.forward(part) for part in parts], _output)

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> Pending[dict[str, InputGradient]]:
        """See `Teachers.pullback`."""
        parts = self._parts.pop(question.key, None)
        if parts is None:
            return self._teachers.pullback(question, cotangents)
        own = {name: self._shares(each, len(parts)) for name, each in cotangents.items()}
        pending = [
            self._teachers.pullback(part, {name: shares[i] for name, shares in own.items()})
            for i, part in enumerate(parts)
        ]
        return _Joined(pending, _gradient)

    def drop(self, question: Question) -> None:
        """See `Teachers.drop`."""
        for part in self._parts.pop(question.key, [question]):
            self._teachers.drop(part)

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""
        return self._teachers.tail(teacher, depth)

    def _divided(self, question: Question) -> list[Question]:
        inputs = torch.split(question.inputs, self._rows)
        gates = {name: torch.split(gate, self._rows) for name, gate in question.gates.items()}
        return [
            replace(
                question,
                inputs=part,
                gates={name: own[i] for name, own in gates.items()},
                key=f"{question.key}.{i}",
            )
            for i, part in enumerate(inputs)
        ]

    def _shares(self, cotangents: TeacherOutput, parts: int) -> list[TeacherOutput]:
        """Each part's rows; a sum is one number of the whole batch, and so is its cotangent."""
        logits = _split(cotangents.logits, self._rows)
        embeddings = _split(cotangents.embedding, self._rows)
        return [
            TeacherOutput(
                None if logits is None else logits[i],
                None if embeddings is None else embeddings[i],
                cotangents.sums,
            )
            for i in range(parts)
        ]


@dataclass(frozen=True)
class _Joined(Generic[Answer]):
    """Answers about all parts of a batch, as one."""

    parts: Sequence[Pending[dict[str, Answer]]]
    join: Callable[[Sequence[Answer]], Answer]

    def result(self) -> dict[str, Answer]:
        """Wait for all."""
        answers = [part.result() for part in self.parts]
        return {name: self.join([each[name] for each in answers]) for name in answers[0]}


def _output(parts: Sequence[TeacherOutput]) -> TeacherOutput:
    sums = [part.sums for part in parts if part.sums is not None]
    return TeacherOutput(
        _joined([part.logits for part in parts]),
        _joined([part.embedding for part in parts]),
        functools.reduce(operator.add, sums) if sums else None,
    )


def _gradient(parts: Sequence[InputGradient]) -> InputGradient:
    return InputGradient(
        torch.cat([part.inputs for part in parts]), _joined([part.gate for part in parts])
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _split(value: Tensor | None, rows: int) -> tuple[Tensor, ...] | None:
    return None if value is None else torch.split(value, rows)
