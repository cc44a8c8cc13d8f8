"""`Teachers` that live in Ray actors.

Every call goes to the replica with the least to do, and is asked again elsewhere when that dies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayTaskError,
)
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.errors import RunFailed, TeacherUnavailable
from dfka_dist.teachers import answers, wire
from dfka_dist.teachers.interface import InputGradient, Question, TeacherDescription, TeacherOutput
from dfka_dist.teachers.meters import ClientMeters
from dfka_dist.teachers.pace import Kind
from dfka_dist.teachers.routing import Replica, Routing
from dfka_dist.teachers.server import Call, Reply
from dfka_dist.teachers.shards import Passed, Reference, Shards

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


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
        timeout: seconds after which an answer counts as lost, and its replica as dead.
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
        self._routing = Routing(replicas, in_flight)
        self._in_flight, self._wire, self._timeout = in_flight, wire_precision, timeout
        self._sent: dict[str, _Sent] = {}
        self._meters = ClientMeters()
        self.traffic, self._lock = Traffic(), threading.Lock()
        self._servers = sum(len(shards.handles) for own in replicas.values() for shards in own)
        self._computed, self._waited, self._waits = 0.0, 0.0, threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {
            "in_flight": self._in_flight,
            "wire_precision": self._wire,
            "timeout": self._timeout,
        }
        return _restore, (self._descriptions, self._routing.shards, settings)

    def exact(self) -> ServedTeachers:
        """Another client of the same servers, on whose way nothing is rounded."""
        restore, (descriptions, replicas, settings) = self.__reduce__()
        other: ServedTeachers = restore(
            descriptions, replicas, settings | {"wire_precision": "fp32"}
        )
        return other

    @property
    def waited(self) -> float:
        """See `Teachers.waited`."""
        return float(getattr(self._waits, "seconds", 0.0))

    @property
    def waited_beside(self) -> float:
        """See `Teachers.waited_beside`."""
        return self._waited - self.waited

    @property
    def worked(self) -> float:
        """See `Teachers.worked`."""
        return self._computed / max(1, self._servers)

    @property
    def descriptions(self) -> dict[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return self._descriptions

    def forward(self, question: Question) -> _Asked[TeacherOutput]:
        """See `Teachers.forward`; the inputs are put once, however many teachers read them, and
        their gates once for forward and pullback."""
        sent = _Sent(self._put(question.inputs), len(question.inputs))
        sent.gates = {name: self._put(gate) for name, gate in question.gates.items()}
        if question.wanted.gradient:
            self._sent[question.key] = sent
        calls = {name: self._call(question) for name in question.teachers}

        def ask(name: str, shards: Shards) -> list[Reference]:
            sent.passed[name] = shards.forward(calls[name], *sent.of(name))
            return sent.passed[name].answers

        opened = partial(answers.output, device=question.inputs.device)
        return self._ask("forward", sent, ask, calls, opened)

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> _Asked[InputGradient]:
        """See `Teachers.pullback`; goes where the graph is kept, while that server lives."""
        sent = self._sent.pop(question.key)
        calls = {name: self._call(question) for name in cotangents}
        arrays = {name: wire.encode_output(own, self._wire) for name, own in cotangents.items()}
        self._has_sent(*(array for own in arrays.values() for array in own))

        def ask(name: str, shards: Shards) -> list[Reference]:
            before = sent.replicas[name].shards
            if shards is not before and len(before.handles) > 1:
                # What flowed between the shards of a replica may be lost with it.
                sent.passed[name] = shards.forward(calls[name], *sent.of(name))
            return [shards.pullback(calls[name], sent.passed[name], arrays[name])]

        opened = partial(answers.gradient, device=question.inputs.device)
        return self._ask("pullback", sent, ask, calls, opened)

    def drop(self, question: Question) -> None:
        """See `Teachers.drop`."""
        sent = self._sent.pop(question.key, None)
        for replica in sent.replicas.values() if sent else []:
            replica.shards.drop(question.key)

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""

        def ask(_: str, shards: Shards) -> list[Reference]:
            return shards.tail(depth)

        return self._ask("tail", _Sent(None), ask, [teacher], answers.state).result()[teacher]

    def _call(self, question: Question) -> Call:
        self._has_sent(calls=1)
        return Call(
            question.key,
            question.depth,
            question.wanted,
            question.precision,
            self._wire,
            time.time(),
        )

    def _put(self, tensor: Tensor) -> Reference:
        array = wire.encode(tensor, self._wire)
        self._has_sent(array)
        return _put(array)

    def _ask(
        self,
        kind: Kind,
        sent: _Sent,
        ask: Callable[[str, Shards], list[Reference]],
        names: Iterable[str],
        opened: Callable[[list[Any]], Answer],
    ) -> _Asked[Answer]:
        asked = _Asked(self, kind, sent, ask, opened)
        for name in names:
            asked.send(name)
        return asked

    def _has_waited(self, seconds: float) -> None:
        self._waits.seconds = self.waited + seconds
        with self._lock:
            self._waited += seconds
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
        self._meters.outstanding(name, self._routing.outstanding(name))


class _Sent:
    """Where a question's inputs and gates lie, and who was asked."""

    def __init__(self, inputs: Any, rows: int = 0) -> None:
        self.inputs, self.rows = inputs, rows
        self.gates: dict[str, Reference] = {}
        self.replicas: dict[str, Replica] = {}
        self.passed: dict[str, Passed] = {}

    def of(self, name: str) -> tuple[Reference, ...]:
        """What goes to a teacher: the inputs, and its gate if it has one."""
        return (self.inputs, self.gates[name]) if name in self.gates else (self.inputs,)


class _Asked(Generic[Answer]):
    """Calls that are out, one for each teacher."""

    def __init__(
        self,
        client: ServedTeachers,
        kind: Kind,
        sent: _Sent,
        ask: Callable[[str, Shards], list[Reference]],
        opened: Callable[[list[Any]], Answer],
    ) -> None:
        self._client, self._kind, self._sent = client, kind, sent
        self._ask, self._opened = ask, opened
        self._references: dict[str, list[Reference]] = {}

    def send(self, name: str) -> None:
        """Ask a teacher, as soon as its replica may be asked."""
        began = time.monotonic()
        try:
            replica = self._admitted(name)
        finally:
            self._client._has_waited(time.monotonic() - began)
        self._send_to(replica, name)

    def _send_to(self, replica: Replica, name: str) -> None:
        references = self._ask(name, replica.shards)
        replica.sent(references[-1])
        self._sent.replicas[name] = replica
        self._references[name] = references
        self._client._count(name)

    def _admitted(self, name: str) -> Replica:
        """The replica that is asked, as soon as it may be."""
        while True:
            kept = self._sent.replicas.get(name)
            replica = self._client._routing.pick(name, kept, self._kind)
            try:
                replica.admit(self._client._timeout)
            except GetTimeoutError:
                self._give_up(name, replica)
            else:
                return replica

    def result(self) -> dict[str, Answer]:
        """Per teacher, in the order asked.

        Raises:
            TeacherUnavailable: a teacher has no replica left, or the last did not answer in time.
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
                # Of one that was given up meanwhile only what is there already.
                said = ray.get(references, timeout=self._client._timeout if replica.alive else 0)
            except GetTimeoutError:
                self._give_up(name, replica)
                self._send_to(self._admitted(name), name)
                continue
            except (*answers.GONE, RayTaskError) as error:
                if not answers.is_gone(error):
                    raise RunFailed(answers.failure(name, self._sent.rows, error)) from error
                self._lose(name, replica, answers.reason(error))
                self._send_to(self._admitted(name), name)
                continue
            seconds = sum(reply.seconds for reply in said)
            replica.received(references[-1], self._kind, self._sent.rows, seconds)
            self._client._has_come(said)
            self._client._count(name)
            return self._opened([reply.arrays for reply in said])

    def _give_up(self, name: str, replica: Replica) -> None:
        """Ask a replica that does not answer no more.

        Raises:
            TeacherUnavailable: it is the last one.
        """
        if self._client._routing.alive(name) == [replica]:
            raise self._late(name) from None
        self._lose(name, replica, str(self._late(name)))

    def _lose(self, name: str, replica: Replica, reason: str) -> None:
        """Ask a replica no more; the others have more to do, and somebody is to know."""
        if replica.alive and len(self._client._routing.alive(name)) > 1:
            log.warning("a server of teacher %s is asked no more: %s", name, reason)
        replica.lost(reason)

    def _late(self, name: str) -> TeacherUnavailable:
        waited = self._client._timeout
        return TeacherUnavailable(
            f"teacher {name} did not answer within {waited:g} s (serving.timeout)"
        )


def _put(inputs: wire.Array) -> Reference:
    try:
        return ray.put(inputs)
    except (ObjectStoreFullError, OutOfDiskError) as error:  # the store, or what it spills to
        megabytes = inputs.nbytes / 2**20
        raise RunFailed(
            f"a batch of {megabytes:,.0f} MiB does not fit into Ray's object store: a smaller "
            "training.batch_size, training.micro_batch, or a larger store"
        ) from error


def _restore(
    descriptions: Mapping[str, TeacherDescription],
    replicas: Mapping[str, Sequence[Shards]],
    settings: dict[str, Any],
) -> ServedTeachers:
    return ServedTeachers(descriptions, replicas, **settings)
