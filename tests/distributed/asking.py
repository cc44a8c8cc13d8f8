"""Questions to teachers, and what comes back, for tests that compare two ways of asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Question,
    TeacherOutput,
    Teachers,
    Wanted,
)

EVERYTHING = Wanted(embedding=True, sums=True, gradient=True)


def question(
    teachers: Teachers, name: str, depth: int, count: int = 5, dtype: torch.dtype = torch.float32
) -> Question:
    """A batch at a depth, gated inside the network; the same for the same arguments."""
    random = torch.Generator().manual_seed(depth)
    shape = teachers.descriptions[name].shapes[depth]
    inputs = torch.rand(count, *shape, generator=random, dtype=dtype)
    gate = 2 * torch.rand(count, shape[0], generator=random, dtype=dtype)
    return Question(inputs, (name,), EVERYTHING, depth=depth, gates={name: gate} if depth else {})


def cotangents(answer: TeacherOutput) -> TeacherOutput:
    """Something for every number of an answer to `EVERYTHING`."""
    random = torch.Generator().manual_seed(0)
    logits, embedding, first, second = (
        torch.randn(value.shape, generator=random, dtype=value.dtype) for value in parts(answer)
    )
    assert answer.sums is not None
    return TeacherOutput(logits, embedding, BatchNormSums(answer.sums.count, first, second))


def parts(answer: TeacherOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, embedding, first and second sums of an answer to `EVERYTHING`."""
    assert answer.logits is not None and answer.embedding is not None and answer.sums is not None
    return answer.logits, answer.embedding, answer.sums.first, answer.sums.second


def answered(teachers: Teachers, question: Question) -> TeacherOutput:
    """What the only teacher of a question answers."""
    (name,) = question.teachers
    return teachers.forward(question).result()[name]


def pulled_back(
    teachers: Teachers, question: Question, between: Callable[[], object] = lambda: None
) -> InputGradient:
    """Ask, let something happen, and carry `cotangents` of the answer back."""
    answer = answered(teachers, question)
    between()
    (name,) = question.teachers
    return teachers.pullback(question, {name: cotangents(answer)}).result()[name]


def error(one: Tensor | None, other: Tensor | None) -> float:
    """||a - b|| / ||b||; 0 where both are nothing but zeros."""
    assert one is not None and other is not None and one.shape == other.shape
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


class ThroughTheWire(torch.autograd.Function):
    """A teacher as an operation of autograd: logits, embedding and sums of inputs and gate.

    Its gradient may be asked for any number of times: each time the question is asked anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        gate: Tensor | None,
        teachers: Teachers,
        name: str,
        depth: int,
        between: Callable[[], object],
    ) -> tuple[Tensor, ...]:
        gates = {} if gate is None else {name: gate}
        ctx.teachers, ctx.between = teachers, between
        ctx.ask = lambda: Question(inputs, (name,), EVERYTHING, depth, gates)
        asked = ctx.ask()
        answer = answered(teachers, asked)
        teachers.drop(asked)
        return parts(answer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        asked = ctx.ask()
        answer = answered(ctx.teachers, asked)
        ctx.between()
        logits, embedding, first, second = gradients
        assert answer.sums is not None
        sums = BatchNormSums(answer.sums.count, first, second)
        (name,) = asked.teachers
        back = {name: TeacherOutput(logits, embedding, sums)}
        got = ctx.teachers.pullback(asked, back).result()[name]
        return got.inputs, got.gate, None, None, None, None


def gradient_is_right(
    teachers: Teachers, name: str, depth: int, between: Callable[[], object] = lambda: None
) -> bool:
    """`torch.autograd.gradcheck` of a teacher in float64, through whatever stands before it."""
    asked = question(teachers, name, depth, count=2, dtype=torch.float64)
    gate = asked.gates.get(name)
    if gate is not None:
        gate.requires_grad_()

    def function(inputs: Tensor, gate: Tensor | None = None) -> Any:
        return ThroughTheWire.apply(inputs, gate, teachers, name, depth, between)

    given = (asked.inputs.requires_grad_(), *([] if gate is None else [gate]))
    return torch.autograd.gradcheck(function, given)
