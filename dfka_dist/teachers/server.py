"""A teacher in a Ray actor: a pure function plus a cache; any call may be asked again anywhere."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from dfka_dist.config import Precision, TeacherSpec
from dfka_dist.models.sources import Weights
from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import TeacherDescription, Wanted
from dfka_dist.teachers.local import RememberingTeacher
from dfka_dist.teachers.teacher import Teacher


@dataclass(frozen=True)
class Call:
    """A question as it travels: everything but the big arrays."""

    key: str
    depth: int
    wanted: Wanted
    precision: Precision
    gate: wire.Array | None
    answer_precision: Precision
    """On the way back."""


class WeightStore:
    """Hands the weights that the driver has read to servers, and to those that are started again.

    An object reference would not do: Ray may lose what a restarted actor's arguments refer to.
    """

    def __init__(self, weights: dict[str, Weights]) -> None:
        self._weights = weights

    def weights(self, teacher: str) -> Weights:
        """One teacher's."""
        return self._weights[teacher]


class TeacherServer:
    """Serves one replica of one teacher.

    Args:
        store: name of the `WeightStore`: a server needs no file. Not its handle, which would be an
            object that a restart could miss.
        threads: CPU threads; equal for all replicas of a teacher, for the same answers.
    """

    def __init__(
        self,
        *,
        spec: TeacherSpec,
        store: str,
        threads: int,
        cache_bytes: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(
            "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        )
        weights: Weights = ray.get(ray.get_actor(store).weights.remote(spec.name))
        teacher = Teacher(spec, f"teachers.{spec.name}", weights).to(self._device)
        self._teacher = RememberingTeacher(teacher, cache_bytes)

    def describe(self) -> TeacherDescription:
        """What the teacher is; answered when it is loaded."""
        return self._teacher.teacher.description

    def forward(self, call: Call, inputs: list[Any]) -> tuple[wire.Array | None, ...]:
        """Answer a call.

        Args:
            inputs: one object reference, in a list so that Ray hands it over unopened.
        """
        output = self._teacher.forward(
            call.key,
            self._open(inputs),
            depth=call.depth,
            gate=self._gate(call),
            wanted=call.wanted,
            precision=call.precision,
        )
        return wire.encode_output(output, call.answer_precision)

    def pullback(
        self, call: Call, inputs: list[Any], cotangents: tuple[wire.Array | None, ...]
    ) -> tuple[wire.Array | None, ...]:
        """Gradients of a call's inputs; those are fetched only if the graph is gone."""
        gradient = self._teacher.pullback(
            call.key,
            lambda: self._open(inputs),
            wire.decode_output(cotangents, self._device),
            depth=call.depth,
            gate=self._gate(call),
            wanted=call.wanted,
            precision=call.precision,
        )
        return wire.encode_gradient(gradient, call.answer_precision)

    def drop(self, key: str) -> None:
        """Forget a graph."""
        self._teacher.drop(key)

    def tail(self, depth: int) -> dict[str, wire.Array]:
        """State of the blocks behind a depth and of the head."""
        return {
            name: wire.encode(value)
            for name, value in self._teacher.teacher.chain.tail(depth).state_dict().items()
        }

    def pid(self) -> int:
        """The process that serves."""
        return os.getpid()

    def cpu_seconds(self) -> float:
        """What this process has computed so far."""
        return time.process_time()

    def recomputed(self) -> int:
        """How many pullbacks had lost their graph."""
        return self._teacher.recomputed

    def _open(self, inputs: list[Any]) -> torch.Tensor:
        return wire.decode(ray.get(inputs[0]), self._device)

    def _gate(self, call: Call) -> torch.Tensor | None:
        return None if call.gate is None else wire.decode(call.gate, self._device)
