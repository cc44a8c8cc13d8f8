"""Teachers in the caller's own process, and the cache of graphs that served ones have too."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Question,
    TeacherDescription,
    TeacherOutput,
    Wanted,
)
from dfka_dist.teachers.teacher import Teacher, weighing

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)
MIB = 2**20


@dataclass(frozen=True)
class _Graph:
    inputs: Tensor
    gate: Tensor | None
    output: TeacherOutput
    nbytes: int


class RememberingTeacher:
    """A teacher that keeps the newest graphs, bounded in bytes, and makes those it lost again.

    One that is above the bound by itself is not kept, and a warning says so once.
    """

    def __init__(self, teacher: Teacher, cache_bytes: int) -> None:
        self.teacher = teacher
        self._bound = cache_bytes
        self._graphs: OrderedDict[str, _Graph] = OrderedDict()
        self._weights: dict[tuple[Hashable, ...], int] = {}
        self.recomputed, self._warned = 0, False

    def forward(
        self,
        key: str,
        inputs: Tensor,
        *,
        depth: int,
        gate: Tensor | None,
        wanted: Wanted,
        precision: Precision,
    ) -> TeacherOutput:
        """Answer; the graph is kept under `key` if a gradient is wanted."""
        if not wanted.gradient:
            with torch.no_grad():
                return self.teacher.forward(
                    inputs, depth=depth, gate=gate, wanted=wanted, precision=precision
                )
        graph = self._run(inputs, depth, gate, wanted, precision)
        self._keep(key, graph)
        return _detached(graph.output)

    def pullback(
        self,
        key: str,
        inputs: Callable[[], tuple[Tensor, Tensor | None]],
        cotangents: TeacherOutput,
        *,
        depth: int,
        wanted: Wanted,
        precision: Precision,
    ) -> InputGradient:
        """Gradients of inputs and gate; from the kept graph, or from a new one if it is gone.

        Args:
            inputs: fetches them and their gate; called only for a new graph.
        """
        graph = self._graphs.pop(key, None)
        if graph is None:
            self.recomputed += 1
            fetched, gate = inputs()
            graph = self._run(fetched, depth, gate, wanted, precision)
        pairs = [
            (o, c)
            for o, c in zip(_parts(graph.output), _parts(cotangents), strict=True)
            # Sums are constant where the question came in behind the last BatchNorm layer.
            if c is not None and o is not None and o.requires_grad
        ]
        leaves = [graph.inputs] if graph.gate is None else [graph.inputs, graph.gate]
        outputs, given = [o for o, _ in pairs], [c.to(o.dtype) for o, c in pairs]
        gradients = torch.autograd.grad(outputs, leaves, given)
        return InputGradient(gradients[0], gradients[1] if graph.gate is not None else None)

    @property
    def kept_bytes(self) -> int:
        """What the kept graphs hold."""
        return sum(graph.nbytes for graph in self._graphs.values())

    def knows(self, key: str) -> bool:
        """Whether the graph of this question is still kept."""
        return key in self._graphs

    def drop(self, key: str) -> None:
        """Forget a graph, if it is there."""
        self._graphs.pop(key, None)

    def _run(
        self, inputs: Tensor, depth: int, gate: Tensor | None, wanted: Wanted, precision: Precision
    ) -> _Graph:
        inputs = inputs.detach().requires_grad_()
        gate = None if gate is None else gate.detach().requires_grad_()
        kind = inputs.shape, inputs.dtype, depth, gate is not None, wanted, precision
        known = self._weights.get(kind)
        with torch.enable_grad() if known is not None else weighing() as held:
            output = self.teacher.forward(
                inputs, depth=depth, gate=gate, wanted=wanted, precision=precision
            )
        if known is None:
            own = self.teacher.storages
            known = sum(size for place, size in (held or {}).items() if place not in own)
            if self.teacher.is_static:
                self._weights[kind] = known
        return _Graph(inputs, gate, output, known)

    def _keep(self, key: str, graph: _Graph) -> None:
        """The newest, but one that would need all room alone: the others are worth more."""
        if graph.nbytes > self._bound:
            self._warn(graph.nbytes)
            return
        self._graphs[key] = graph
        while self.kept_bytes > self._bound:
            self._graphs.popitem(last=False)

    def _warn(self, nbytes: int) -> None:
        if not self._warned:
            name, needed, bound = self.teacher.spec.name, nbytes / MIB, self._bound / MIB
            log.warning(
                "what %s saves of one batch, %.1f MiB, is more than the %.1f MiB of "
                "serving.cache_megabytes: it is made again for every pullback",
                name,
                needed,
                bound,
            )
        self._warned = True


@dataclass(frozen=True)
class Ready(Generic[Answer]):
    """An answer that is there already; a `Pending`."""

    answer: Answer

    def result(self) -> Answer:
        """The answer."""
        return self.answer


class LocalTeachers:
    """`Teachers` in this process; answers are computed when they are asked for."""

    def __init__(self, teachers: Mapping[str, Teacher], cache_bytes: int = 1 << 30) -> None:
        self._teachers = {
            name: RememberingTeacher(teacher, cache_bytes) for name, teacher in teachers.items()
        }

    @property
    def descriptions(self) -> dict[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return {name: kept.teacher.description for name, kept in self._teachers.items()}

    @property
    def waited(self) -> float:
        """Nothing: the caller computes the answers itself."""
        return 0.0

    @property
    def waited_beside(self) -> float:
        """Nothing, as `waited`."""
        return 0.0

    @property
    def worked(self) -> None:
        """There is no server."""

    def forward(self, question: Question) -> Ready[dict[str, TeacherOutput]]:
        """See `Teachers.forward`."""
        return Ready(
            {
                name: self._teachers[name].forward(
                    question.key,
                    question.inputs,
                    depth=question.depth,
                    gate=question.gates.get(name),
                    wanted=question.wanted,
                    precision=question.precision,
                )
                for name in question.teachers
            }
        )

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> Ready[dict[str, InputGradient]]:
        """See `Teachers.pullback`."""
        return Ready(
            {
                name: self._teachers[name].pullback(
                    question.key,
                    partial(_given, question, name),
                    own,
                    depth=question.depth,
                    wanted=question.wanted,
                    precision=question.precision,
                )
                for name, own in cotangents.items()
            }
        )

    def drop(self, question: Question) -> None:
        """See `Teachers.drop`."""
        for name in question.teachers:
            self._teachers[name].drop(question.key)

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""
        return dict(self._teachers[teacher].teacher.chain.tail(depth).state_dict())


def _given(question: Question, name: str) -> tuple[Tensor, Tensor | None]:
    return question.inputs, question.gates.get(name)


def _parts(output: TeacherOutput) -> tuple[Tensor | None, ...]:
    sums = output.sums
    own = (None, None) if sums is None else (sums.first, sums.second)
    return output.logits, output.embedding, output.feature, *own


def _detached(output: TeacherOutput) -> TeacherOutput:
    sums = output.sums
    return TeacherOutput(
        None if output.logits is None else output.logits.detach(),
        None if output.embedding is None else output.embedding.detach(),
        None
        if sums is None
        else BatchNormSums(sums.count, sums.first.detach(), sums.second.detach()),
        None if output.feature is None else output.feature.detach(),
    )
