"""`Teachers` that live in Ray actors.

Every call goes to the replica with the least to do, and is asked again elsewhere when that dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.errors import RunFailed, TeacherUnavailable
from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import InputGradient, Question, TeacherDescription, TeacherOutput
from dfka_dist.teachers.server import Call

Answer = TypeVar("Answer")
Handle = Any
"""A Ray actor handle of `TeacherServer`; Ray has no type for it."""


class ServedTeachers:
    """One client's view of a `TeacherPool`; can be sent to another process, where it starts afresh.

    Args:
        replicas: per teacher the handles of its servers.
        in_flight: calls that this client may have outstanding with one replica.
        timeout: seconds after which an answer counts as lost.
    """

    def __init__(
        self,
        descriptions: Mapping[str, TeacherDescription],
        replicas: Mapping[str, list[Handle]],
        *,
        in_flight: int,
        wire_precision: Precision = "fp32",
        timeout: float = 600.0,
    ) -> None:
        self._descriptions = dict(descriptions)
        self._replicas = {
            name: [_Replica(handle, in_flight) for handle in own] for name, own in replicas.items()
        }
        self._in_flight, self._wire, self._timeout = in_flight, wire_precision, timeout
        self._sent: dict[str, _Sent] = {}
        self.waited = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        replicas = {
            name: [replica.handle for replica in own] for name, own in self._replicas.items()
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
    def descriptions(self) -> dict[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return self._descriptions

    def forward(self, question: Question) -> _Asked[TeacherOutput]:
        """See `Teachers.forward`; the inputs are put once, however many teachers read them."""
        sent = _Sent(ray.put(wire.encode(question.inputs, self._wire)))
        if question.wanted.gradient:
            self._sent[question.key] = sent
        calls = {name: self._call(question, name) for name in question.teachers}
        return self._ask(
            sent,
            lambda name, server: server.forward.remote(calls[name], [sent.inputs]),
            calls,
            question,
        )

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> _Asked[InputGradient]:
        """See `Teachers.pullback`; goes where the graph is kept, while that server lives."""
        sent = self._sent.pop(question.key)
        calls = {name: self._call(question, name) for name in cotangents}
        arrays = {name: wire.encode_output(own, self._wire) for name, own in cotangents.items()}

        def ask(name: str, server: Handle) -> Any:
            return server.pullback.remote(calls[name], [sent.inputs], arrays[name])

        return self._ask(sent, ask, calls, question)

    def drop(self, question: Question) -> None:
        """See `Teachers.drop`."""
        sent = self._sent.pop(question.key, None)
        for replica in sent.replicas.values() if sent else []:
            replica.handle.drop.remote(question.key)

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """See `Teachers.tail`."""
        sent = _Sent(None)
        asked: _Asked[Any] = self._ask(
            sent, lambda _, server: server.tail.remote(depth), {teacher: None}, None
        )
        state: dict[str, Tensor] = asked.result()[teacher]
        return state

    def _call(self, question: Question, name: str) -> Call:
        gate = question.gates.get(name)
        encoded = None if gate is None else wire.encode(gate, self._wire)
        return Call(
            question.key, question.depth, question.wanted, question.precision, encoded, self._wire
        )

    def _ask(
        self,
        sent: _Sent,
        ask: Callable[[str, Handle], Any],
        names: Mapping[str, Any],
        question: Question | None,
    ) -> _Asked[Any]:
        device = question.inputs.device if question is not None else None
        asked: _Asked[Any] = _Asked(self, sent, ask, device)
        for name in names:
            asked.send(name)
        return asked

    def _pick(self, name: str, sent: _Sent) -> _Replica:
        """The replica that has the graph, else the one with the least to do."""
        alive = [replica for replica in self._replicas[name] if replica.alive]
        if not alive:
            raise TeacherUnavailable(f"teacher {name} has no server left")
        kept = sent.replicas.get(name)
        return kept if kept in alive else min(alive, key=lambda replica: len(replica.outstanding))


class _Replica:
    """One server as this client sees it."""

    def __init__(self, handle: Handle, in_flight: int) -> None:
        self.handle = handle
        self.alive = True
        self.outstanding: list[Any] = []
        self._in_flight = in_flight

    def admit(self, timeout: float) -> None:
        """Wait until another call may go out.

        Raises:
            GetTimeoutError: none was answered in time.
        """
        while len(self.outstanding) >= self._in_flight:
            done, self.outstanding = ray.wait(
                self.outstanding, num_returns=1, timeout=timeout, fetch_local=False
            )
            if not done:
                raise GetTimeoutError


class _Sent:
    """Where a question's inputs lie and who was asked."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.replicas: dict[str, _Replica] = {}


class _Asked(Generic[Answer]):
    """Calls that are out, one for each teacher."""

    def __init__(
        self, client: ServedTeachers, sent: _Sent, ask: Callable[[str, Handle], Any], device: Any
    ) -> None:
        self._client, self._sent, self._ask, self._device = client, sent, ask, device
        self._references: dict[str, Any] = {}

    def send(self, name: str) -> None:
        replica = self._client._pick(name, self._sent)
        began = time.monotonic()
        try:
            replica.admit(self._client._timeout)
        except GetTimeoutError:
            raise self._late(name) from None
        finally:
            self._client.waited += time.monotonic() - began
        reference = self._ask(name, replica.handle)
        replica.outstanding.append(reference)
        self._sent.replicas[name] = replica
        self._references[name] = reference

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
            self._client.waited += time.monotonic() - began

    def _receive(self, name: str) -> Answer:
        while True:
            reference, replica = self._references[name], self._sent.replicas[name]
            try:
                arrays = ray.get(reference, timeout=self._client._timeout)
            except RayActorError:
                replica.alive = False
                self.send(name)
                continue
            except GetTimeoutError:
                raise self._late(name) from None
            except RayTaskError as error:
                raise RunFailed(f"teacher {name} failed: {error.cause}") from error
            replica.outstanding = [r for r in replica.outstanding if r != reference]
            answer: Answer = self._decoded(arrays)
            return answer

    def _late(self, name: str) -> TeacherUnavailable:
        waited = self._client._timeout
        return TeacherUnavailable(f"teacher {name} did not answer within {waited:g} s")

    def _decoded(self, arrays: Any) -> Any:
        if isinstance(arrays, dict):
            return {name: wire.decode(array) for name, array in arrays.items()}
        return (wire.decode_output if len(arrays) == 5 else wire.decode_gradient)(
            arrays, self._device
        )


def _restore(
    descriptions: Mapping[str, TeacherDescription],
    replicas: Mapping[str, list[Handle]],
    settings: dict[str, Any],
) -> ServedTeachers:
    return ServedTeachers(descriptions, replicas, **settings)
