"""Which replica of a teacher is asked: the one with the least to do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import GetTimeoutError

from dfka_dist.errors import TeacherUnavailable
from dfka_dist.teachers.pace import Kind, Pace
from dfka_dist.teachers.shards import Reference, Shards


class Replica:
    """One replica as one client sees it.

    Args:
        in_flight: calls that the client may have outstanding with it.
    """

    def __init__(self, shards: Shards, in_flight: int) -> None:
        self.shards = shards
        self.alive = True
        self.reason = ""
        """Why it does not live, one line."""
        self.pace = Pace()
        self._outstanding: dict[Reference, None] = {}
        self._in_flight = in_flight

    def __len__(self) -> int:
        """Calls that no answer was received of."""
        return len(self._outstanding)

    def busy(self) -> int:
        """Calls that no answer was given to, received or not."""
        if out := list(self._outstanding):
            done, _ = ray.wait(out, num_returns=len(out), timeout=0, fetch_local=False)
            self._forget(done)
        return len(self._outstanding)

    def admit(self, timeout: float) -> None:
        """Wait until another call may go out.

        Raises:
            GetTimeoutError: none was answered in time.
        """
        while len(out := list(self._outstanding)) >= self._in_flight:
            done, _ = ray.wait(out, num_returns=1, timeout=timeout, fetch_local=False)
            if not done:
                raise GetTimeoutError
            self._forget(done)

    def lost(self, reason: str) -> None:
        """It is asked no more."""
        self.alive, self.reason = False, reason

    def sent(self, reference: Reference) -> None:
        """A call went out."""
        self._outstanding[reference] = None

    def received(self, reference: Reference, kind: Kind, rows: int, seconds: float) -> None:
        """Its answer about so many rows came, and took so long to compute."""
        self.pace.heard(kind, rows, seconds)
        self._forget([reference])

    def _forget(self, references: Sequence[Reference]) -> None:
        for reference in references:
            self._outstanding.pop(reference, None)


class Routing:
    """The replicas of all teachers."""

    def __init__(self, replicas: Mapping[str, Sequence[Shards]], in_flight: int) -> None:
        self._replicas = {
            name: [Replica(shards, in_flight) for shards in own] for name, own in replicas.items()
        }
        # Clients that begin at the same time begin with different replicas.
        self._turns = itertools.count(int.from_bytes(os.urandom(2)))

    @property
    def shards(self) -> dict[str, list[Shards]]:
        """Per teacher the servers of each replica."""
        return {name: [each.shards for each in own] for name, own in self._replicas.items()}

    def outstanding(self, teacher: str) -> int:
        """Calls with any of its replicas that live."""
        return sum(map(len, self.alive(teacher)))

    def alive(self, teacher: str) -> list[Replica]:
        """Its replicas that nobody has given up."""
        return [replica for replica in self._replicas[teacher] if replica.alive]

    def pick(self, teacher: str, kept: Replica | None, kind: Kind) -> Replica:
        """The replica that has the graph, while it lives, else the one with the least to do, of
        equals the one that was faster, or whose turn it is: a slow one gets less.

        Raises:
            TeacherUnavailable: none lives.
        """
        alive = self.alive(teacher)
        if not alive:
            raise TeacherUnavailable(
                f"teacher {teacher} has no server left: {self._replicas[teacher][-1].reason}; "
                "serving.restarts and serving.replicas say how many there are, and what takes less "
                "memory is training.micro_batch and serving.cache_megabytes"
            )
        if kept in alive:
            return kept
        if len(alive) == 1:
            return alive[0]
        busy = [replica.busy() for replica in alive]
        idlest = [own for own, calls in zip(alive, busy, strict=True) if calls == min(busy)]
        turn = next(self._turns) % len(idlest)
        chosen = min(idlest[turn:] + idlest[:turn], key=lambda replica: replica.pace.of(kind))
        for other in idlest:
            if other is not chosen:
                other.pace.passed_over(kind)
        return chosen
