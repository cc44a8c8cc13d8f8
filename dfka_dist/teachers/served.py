"""`Teachers` that live in Ray actors.

Every call goes to the replica with the least to do, and is asked again elsewhere when that dies.
"""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    RayActorError,
    RayTaskError,
)
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.errors import RunFailed, TeacherUnavailable
from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import InputGradient, Question, TeacherDescription, TeacherOutput
from dfka_dist.teachers.meters import ClientMeters
from dfka_dist.teachers.server import Call, Reply
from dfka_dist.teachers.shards import Passed, Reference, Shards

Answer = TypeVar("Answer")


@dataclass
class Traffic:
    """What one client has sent and received of arrays so far; what passes between shards is not
    its own."""

    sent: int = 0
    received: int = 0
    calls: int = 0


class ServedTeachers:
    """One client's view of a `TeacherPool`; can be sent to another process, where it starts afresh,
    and be used by two threads of one.

    Args:
        replicas: per teacher the servers of each replica.
        in_flight: calls that this client may have outstanding with one replica.
        timeout: seconds after which an answer counts as lost.
    """

    def __init__(
        self,
        descriptions: Mapping[str, TeacherDescription],
        replicas: Mapping[str, Sequence[Shards]],
        *,
        in_flight: int,
        wire_precision: Precision = "fp32",
        timeout: float = 600.0,
    ) -> None:
        self._descriptions = dict(descriptions)
        self._replicas = {
            name: [_Replica(shards, in_flight) for shards in own] for name, own in replicas.items()
        }
        self._in_flight, self._wire, self._timeout = in_flight, wire_precision, timeout
        self._sent: dict[str, _Sent] = {}
        self._meters = ClientMeters()
        self.traffic, self._lock = Traffic(), threading.Lock()
        self._servers = sum(len(shards.handles) for own in replicas.values() for shards in own)
        self._computed = self.waited = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        replicas = {
            name: [replica.shards for replica in own] for name, own in self._replicas.items()
        }
        settings = {
            "in_flight": self._in_flight,
            "wire_precision": self._wire,
            "timeout": self._timeout,
        }
        return _restore, (self._descriptions, replicas, settings)

    def exact(self) -> ServedTeachers:
        """Another client of the same servers, on whose way nothing is rounded."""
        restore, (descriptions, replicas, settings) = self.__reduce__()
        other: ServedTeachers = restore(
            descriptions, replicas, settings | {"wire_precision": "fp32"}
        )
        return other

    @property
    def worked(self) -> float:
        """See `Teachers.worked`."""
        return self._computed / max(1, self._servers)

    @property
    def descriptions(self) -> dict[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return self._descriptions

    def forward(self, question: Question) -> _Asked[TeacherOutput]:
        """See `Teachers.forward`; the inputs are put once, however many teachers read them."""
        inputs = wire.encode(question.inputs, self._wire)
        sent = _Sent(_put(inputs), len(question.inputs))
        self._has_sent(inputs)
        if question.wanted.gradient:
            self._sent[question.key] = sent
        calls = {name: self._call(question, name) for name in question.teachers}

        def ask(name: str, shards: Shards) -> list[Reference]:
            sent.passed[name] = shards.forward(calls[name], sent.inputs)
            return sent.passed[name].answers

        return self._ask(sent, ask, calls, lambda said: _output(said, question.inputs.device))

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> _Asked[InputGradient]:
        """See `Teachers.pullback`; goes where the graph is kept, while that server lives."""
        sent = self._sent.pop(question.key)
        calls = {name: self._call(question, name) for name in cotangents}
        arrays = {name: wire.encode_output(own, self._wire) for name, own in cotangents.items()}
        self._has_sent(*(array for own in arrays.values() for array in own))

        def ask(name: str, shards: Shards) -> list[Reference]:
            before = sent.replicas[name].shards
            if shards is not before and len(before.handles) > 1:
                # What flowed between the shards of a replica may be lost with it.
                sent.passed[name] = shards.forward(calls[name], sent.inputs)
            return [shards.pullback(calls[name], sent.passed[name], arrays[name])]

        return self._ask(sent, ask, calls, lambda said: _gradient(said, question.inputs.device))

    def drop(self, question: Question) -> None:
        """See `Teachers.drop`."""
        sent = self._sent.pop(question.key, None)
        for replica in sent.replicas.values() if sent else []:
            replica.shards.drop(question.key)

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""
        asked = self._ask(_Sent(None), lambda _, shards: shards.tail(depth), [teacher], _state)
        return asked.result()[teacher]

    def _call(self, question: Question, name: str) -> Call:
        gate = question.gates.get(name)
        encoded = None if gate is None else wire.encode(gate, self._wire)
        self._has_sent(encoded, calls=1)
        return Call(
            question.key,
            question.depth,
            question.wanted,
            question.precision,
            encoded,
            self._wire,
            time.time(),
        )

    def _ask(
        self,
        sent: _Sent,
        ask: Callable[[str, Shards], list[Reference]],
        names: Iterable[str],
        opened: Callable[[list[Any]], Answer],
    ) -> _Asked[Answer]:
        asked = _Asked(self, sent, ask, opened)
        for name in names:
            asked.send(name)
        return asked

    def _has_waited(self, seconds: float) -> None:
        with self._lock:
            self.waited += seconds
        self._meters.waited(seconds)

    def _has_sent(self, *arrays: wire.Array | None, calls: int = 0) -> None:
        with self._lock:
            self.traffic.sent += wire.nbytes(*arrays)
            self.traffic.calls += calls

    def _has_come(self, replies: Sequence[Reply]) -> None:
        with self._lock:
            for reply in replies:
                self._computed += reply.seconds
                if not isinstance(reply.arrays, dict):
                    self.traffic.received += wire.nbytes(*reply.arrays)

    def _count(self, name: str) -> None:
        out = sum(len(replica.outstanding) for replica in self._replicas[name])
        self._meters.outstanding(name, out)

    def _pick(self, name: str, sent: _Sent) -> _Replica:
        """The replica that has the graph, else the one with the least to do."""
        alive = [replica for replica in self._replicas[name] if replica.alive]
        if not alive:
            raise TeacherUnavailable(f"teacher {name} has no server left")
        kept = sent.replicas.get(name)
        return kept if kept in alive else min(alive, key=lambda replica: len(replica.outstanding))


class _Replica:
    """One replica as this client sees it."""

    def __init__(self, shards: Shards, in_flight: int) -> None:
        self.shards = shards
        self.alive = True
        self.outstanding: dict[Reference, None] = {}
        self._in_flight = in_flight

    def admit(self, timeout: float) -> None:
        """Wait until another call may go out.

        Raises:
            GetTimeoutError: none was answered in time.
        """
        while len(out := list(self.outstanding)) >= self._in_flight:
            done, _ = ray.wait(out, num_returns=1, timeout=timeout, fetch_local=False)
            if not done:
                raise GetTimeoutError
            for reference in done:
                self.outstanding.pop(reference, None)


class _Sent:
    """Where a question's inputs lie and who was asked."""

    def __init__(self, inputs: Any, rows: int = 0) -> None:
        self.inputs, self.rows = inputs, rows
        self.replicas: dict[str, _Replica] = {}
        self.passed: dict[str, Passed] = {}


class _Asked(Generic[Answer]):
    """Calls that are out, one for each teacher."""

    def __init__(
        self,
        client: ServedTeachers,
        sent: _Sent,
        ask: Callable[[str, Shards], list[Reference]],
        opened: Callable[[list[Any]], Answer],
    ) -> None:
        self._client, self._sent, self._ask, self._opened = client, sent, ask, opened
        self._references: dict[str, list[Reference]] = {}

    def send(self, name: str) -> None:
        replica = self._client._pick(name, self._sent)
        began = time.monotonic()
        try:
            replica.admit(self._client._timeout)
        except GetTimeoutError:
            raise self._late(name) from None
        finally:
            self._client._has_waited(time.monotonic() - began)
        references = self._ask(name, replica.shards)
        replica.outstanding[references[-1]] = None
        self._sent.replicas[name] = replica
        self._references[name] = references
        self._client._count(name)

    def result(self) -> dict[str, Answer]:
        """Per teacher, in the order asked.

        Raises:
            TeacherUnavailable: a teacher has no replica left, or did not answer in time.
            RunFailed: a teacher's own code failed.
        """
        began = time.monotonic()
        try:
            return {name: self._receive(name) for name in list(self._references)}
        finally:
            self._client._has_waited(time.monotonic() - began)

    def _receive(self, name: str) -> Answer:
        while True:
            references, replica = self._references[name], self._sent.replicas[name]
            try:
                said = ray.get(references, timeout=self._client._timeout)
            except GetTimeoutError:
                raise self._late(name) from None
            except (RayActorError, ObjectLostError, RayTaskError) as error:
                if not _is_gone(error):
                    raise RunFailed(_failure(name, self._sent.rows, error)) from error
                replica.alive = False
                self.send(name)
                continue
            replica.outstanding.pop(references[-1], None)
            self._client._has_come(said)
            self._client._count(name)
            return self._opened([reply.arrays for reply in said])

    def _late(self, name: str) -> TeacherUnavailable:
        waited = self._client._timeout
        return TeacherUnavailable(f"teacher {name} did not answer within {waited:g} s")


def _is_gone(error: Exception) -> bool:
    """Whether a server died, or what it left for another; not what a teacher's own code raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RayActorError | ObjectLostError)


def _failure(name: str, rows: int, error: Exception) -> str:
    """What a teacher's own code raised; and what to do where it will never have the memory."""
    cause = getattr(error, "cause", error)
    no_room = isinstance(cause, torch.OutOfMemoryError | MemoryError)
    if no_room or "can't allocate memory" in str(cause):
        remedy = "training.micro_batch bounds how many, serving.cache_megabytes what is kept"
        return f"teacher {name} has no memory for {rows} images at once: {remedy}"
    return f"teacher {name} failed: {cause}"


def _put(inputs: wire.Array) -> Reference:
    try:
        return ray.put(inputs)
    except ObjectStoreFullError as error:
        megabytes = inputs.nbytes / 2**20
        raise RunFailed(
            f"a batch of {megabytes:,.0f} MiB does not fit into Ray's object store: a smaller "
            "training.batch_size, training.micro_batch, or a larger store"
        ) from error


def _output(said: list[Any], device: torch.device) -> TeacherOutput:
    """Of one shard after another; each has the sums of its own layers, and zeros for the rest."""
    parts = [wire.decode_output(arrays, device) for arrays in said]
    sums = [part.sums for part in parts if part.sums is not None]
    return replace(parts[-1], sums=functools.reduce(operator.add, sums) if sums else None)


def _gradient(said: list[Any], device: torch.device) -> InputGradient:
    return wire.decode_gradient(said[0], device)


def _state(said: list[dict[str, wire.Array]]) -> dict[str, Tensor]:
    return {name: wire.decode(array) for own in said for name, array in own.items()}


def _restore(
    descriptions: Mapping[str, TeacherDescription],
    replicas: Mapping[str, Sequence[Shards]],
    settings: dict[str, Any],
) -> ServedTeachers:
    return ServedTeachers(descriptions, replicas, **settings)
