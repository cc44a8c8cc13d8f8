"""One replica of a teacher: a server, or several that hold its blocks one after another.

Behind each other they pass features on, and gradients back, as object references: what flows
between two shards never comes to whoever asked. What a forward needs is an argument of its own, not
in a list: Ray fetches it while the server computes for others, and lets other callers' questions go
before one whose feature is not there yet, so that two clients cannot wait for each other crosswise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfka_dist.teachers import wire
from dfka_dist.teachers.server import Call

Handle = Any
"""A Ray actor handle of `TeacherServer`; Ray has no type for it."""
Reference = Any


@dataclass(frozen=True)
class Passed:
    """A question on its way through a replica."""

    answers: list[Reference]
    """Of every shard that was asked; the last has logits and embedding, each its own sums."""
    inputs: list[tuple[Reference, ...]]
    """What went into each of them: images or a feature, and a gate if there is one."""


@dataclass(frozen=True)
class Shards:
    """The servers of a replica, in the order of the teacher's blocks.

    Args:
        begins: the depth at which each goes on; 0 for the first.
    """

    handles: tuple[Handle, ...]
    begins: tuple[int, ...] = (0,)

    def asked(self, depth: int) -> tuple[Handle, ...]:
        """Those whom a question at a depth concerns: the one that holds the next block, and all
        behind it."""
        entered = max(i for i, begin in enumerate(self.begins) if begin <= depth)
        return self.handles[entered:]

    def forward(self, call: Call, *inputs: Reference) -> Passed:
        """Ask a question; inputs, and their gate if there is one, come to the first who is
        asked."""
        *inner, last = self.asked(call.depth)
        passed = Passed([], [inputs])
        for server in inner:
            two = server.forward.options(num_returns=2)
            answer, feature = two.remote(call, *passed.inputs[-1])
            passed.answers.append(answer)
            passed.inputs.append((feature,))
        passed.answers.append(last.forward.remote(call, *passed.inputs[-1]))
        return passed

    def pullback(
        self, call: Call, passed: Passed, cotangents: Sequence[wire.Array | None]
    ) -> Reference:
        """Carry cotangents back through the same shards, the last first."""
        *inner, last = self.asked(call.depth)
        gradient = last.pullback.remote(call, list(passed.inputs[-1]), tuple(cotangents), None)
        for server, inputs in zip(reversed(inner), reversed(passed.inputs[:-1]), strict=True):
            sums = (None, None, *cotangents[2:])
            gradient = server.pullback.remote(call, list(inputs), sums, gradient)
        return gradient

    def drop(self, key: str) -> None:
        """Have a graph forgotten."""
        for server in self.handles:
            server.drop.remote(key)

    def tail(self, depth: int) -> list[Reference]:
        """State of the blocks behind a depth and of the head, from each who holds some of it."""
        return [server.tail.remote(depth) for server in self.asked(depth)]
