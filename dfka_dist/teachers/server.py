"""A teacher in a Ray actor: a pure function plus a cache; any call may be asked again anywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray
import torch

from dfka_dist import machine
from dfka_dist.config import Precision, TeacherSpec
from dfka_dist.models.sources import Weights
from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import TeacherDescription, Wanted
from dfka_dist.teachers.local import RememberingTeacher
from dfka_dist.teachers.meters import ServerMeters, Watch
from dfka_dist.teachers.teacher import Teacher


@dataclass(frozen=True)
class Call:
    """A question as it travels: everything but the big arrays."""

    key: str
    depth: int
    wanted: Wanted
    precision: Precision
    answer_precision: Precision
    """On the way back."""
    asked_at: float
    """As the client's `time.time` says."""


class Reply(NamedTuple):
    """An answer as it travels."""

    arrays: Any
    seconds: float
    """That the network computed: in this shard, of a pullback also in those behind it."""


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
    """Serves one replica of one teacher, or one shard of it.

    Args:
        stages: those that are held here, the head being the last.
        compiled: by `torch.compile`.
        replica, shard: which one this is, for whoever looks from outside.
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
        stages: range,
        compiled: bool,
        replica: int,
        shard: int,
    ) -> None:
        machine.compute_with(threads)
        self._device = torch.device(
            "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        )
        weights: Weights = ray.get(ray.get_actor(store).weights.remote(spec.name))
        teacher = Teacher(spec, f"teachers.{spec.name}", weights).keep(stages).to(self._device)
        self._begin = stages.start
        self._teacher = RememberingTeacher(teacher.compile() if compiled else teacher, cache_bytes)
        self._meters = ServerMeters(spec.name, replica, shard)

    def describe(self) -> TeacherDescription:
        """What the teacher is; answered when it is loaded."""
        return self._teacher.teacher.description

    def forward(self, call: Call, inputs: wire.Array, gate: wire.Array | None = None) -> Any:
        """Answer a call: a reply, and where others stand behind, the feature for the next.

        Args:
            inputs: the question's, or what comes from the shard in front; Ray fetches them before
                the call begins, while others are computed.
            gate: on what comes from the trainer.
        """
        asked_at = call.asked_at if call.depth >= self._begin else None
        with self._meters.call("forward", asked_at) as watch:
            given, own = self._given(inputs, call), self._gate(gate)
            with self._computing(watch):
                output = self._teacher.forward(call.key, given, gate=own, **self._asked(call))
            arrays = wire.encode_output(output, call.answer_precision)
            passed = None
            if output.feature is not None:
                passed = wire.encode_feature(output.feature)
            watch.bytes_in = wire.nbytes(inputs, gate)
            watch.bytes_out = wire.nbytes(*arrays, passed)
        self._meters.graphs(self._teacher.kept_bytes)
        reply = Reply(arrays, watch.seconds)
        return reply if passed is None else (reply, passed)

    def pullback(
        self,
        call: Call,
        inputs: Sequence[Any],
        cotangents: tuple[wire.Array | None, ...],
        behind: Reply | None,
    ) -> Reply:
        """Gradients of a call's inputs; those are fetched only if the graph is gone.

        Args:
            inputs: object references, in a list so that Ray hands them over unopened: of images, or
                of a feature of the trainer's or of a shard's; and of a gate on it, if there is one.
            behind: what the next shard's pullback gave.
        """
        before = self._teacher.recomputed
        with self._meters.call("pullback", call.asked_at if behind is None else None) as watch:
            own = wire.decode_output(cotangents, self._device)
            if behind is not None:
                own = replace(own, feature=self._opened(behind.arrays[0], call))
            with self._computing(watch):
                gradient = self._teacher.pullback(
                    call.key, lambda: self._fetched(inputs, call, watch), own, **self._asked(call)
                )
            if call.depth >= self._begin:
                arrays = wire.encode_gradient(gradient, call.answer_precision)
            else:
                arrays = (wire.encode_feature(gradient.inputs), None)
            watch.bytes_in = wire.nbytes(*cotangents, *(behind.arrays if behind else ()))
            watch.bytes_out = wire.nbytes(*arrays)
        self._meters.graphs(self._teacher.kept_bytes, self._teacher.recomputed > before)
        return Reply(arrays, watch.seconds + (behind.seconds if behind else 0.0))

    def drop(self, key: str) -> None:
        """Forget a graph."""
        self._teacher.drop(key)

    def tail(self, depth: int) -> Reply:
        """State of the blocks behind a depth and of the head."""
        state = self._teacher.teacher.chain.tail(depth).state_dict()
        return Reply({name: wire.encode(value) for name, value in state.items()}, 0.0)

    def pid(self) -> int:
        """The process that serves."""
        return os.getpid()

    def cpu_seconds(self) -> float:
        """What this process has computed so far."""
        return time.process_time()

    def recomputed(self) -> int:
        """How many pullbacks had lost their graph."""
        return self._teacher.recomputed

    def _asked(self, call: Call) -> dict[str, Any]:
        """The same of this shard."""
        depth = max(call.depth, self._begin)
        return {"depth": depth, "wanted": call.wanted, "precision": call.precision}

    @contextmanager
    def _computing(self, watch: Watch) -> Iterator[None]:
        """Until a GPU is done too: what is asked for next waits for it anyhow."""
        with watch.computing():
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

    def _fetched(
        self, references: Sequence[Any], call: Call, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        with watch.fetching():
            inputs, *gates = ray.get(list(references))
            return self._given(inputs, call), self._gate(*gates)

    def _gate(self, gate: wire.Array | None = None) -> torch.Tensor | None:
        return None if gate is None else wire.decode(gate, self._device)

    def _given(self, inputs: wire.Array, call: Call) -> torch.Tensor:
        """A network may write into a feature, but not into images: preprocessing makes others."""
        return self._opened(inputs, call, read=self._begin == call.depth == 0)

    def _opened(self, feature: wire.Array, call: Call, *, read: bool = False) -> torch.Tensor:
        narrow = call.precision == "bf16" and call.depth < self._begin
        return wire.decode(feature, self._device, narrow=narrow, read=read)
