"""Work of one network beside that of another, in a thread of its own.

PyTorch lets go of Python's lock while it computes, so two networks can be trained at the same time
on two cores where the operations of one are too small to keep both busy. Nothing that runs aside
may read what the other side writes: then the numbers are the same bits in either order, or at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from dfka_dist import machine
from dfka_dist.training.collectives import rank_and_size

Made = TypeVar("Made")
HANDOVER = 0.0002
"""Seconds after which a thread that waits for Python's lock is given it; 0.005 otherwise, in which
an operation could have been begun on the other core many times."""


class Aside:
    """One helping thread, or none: then all is done in the caller's. Either does one thing after
    the other, in the order in which they were given.

    Args:
        helped: whether there is one.
        wide: threads within the operations of what is done while nothing else computes; None for
            as many as always.
    """

    def __init__(self, *, helped: bool, wide: int | None = None) -> None:
        self._helper = ThreadPoolExecutor(1, "aside") if helped else None
        self._wide = wide
        self._put_off: Later[Any] = Later(lambda: None)
        self._take_back: Callable[[], None] = lambda: None

    @classmethod
    def fitting(cls, device: torch.device) -> Aside:
        """With a helper where one worker computes on a CPU of several cores with one thread, which
        then gives way to all others: what the caller does beside can wait longer than what it waits
        for, and than what the teachers do.

        Kernels on a GPU overlap by themselves; threads within operations and beside each other are
        more than the cores there are; and two threads would bring their collectives in an order
        that differs by worker.
        """
        alone = rank_and_size()[1] == 1 and torch.get_num_threads() == 1 and machine.cores() > 1
        if device.type != "cpu" or not alone:
            return cls(helped=False)
        aside = cls(helped=True, wide=2)
        aside.now(lambda: None).result()  # it is there, and so does not give way with its caller
        take_back, before = machine.give_way(), sys.getswitchinterval()
        sys.setswitchinterval(HANDOVER)

        def as_before() -> None:
            sys.setswitchinterval(before)
            take_back()

        aside._take_back = as_before
        return aside

    def widely(self, call: Callable[[], Made]) -> Made:
        """Call with `wide` threads within its operations; in the helper, or without one here."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._wide or before)
        try:
            return call()
        finally:
            torch.set_num_threads(before)

    def now(self, call: Callable[[], Made]) -> Future[Made] | Later[Made]:
        """Begin at once; without a helper, have it done before anything else."""
        if self._helper is not None:
            return self._helper.submit(call)
        later = self._next(call)
        later.result()
        return later

    def later(self, call: Callable[[], Made]) -> Future[Made] | Later[Made]:
        """Begin at once; without a helper, do it when the result is asked for."""
        return self._next(call) if self._helper is None else self._helper.submit(call)

    def close(self) -> None:
        """End the thread; what was not begun is not done. All threads are as they were before."""
        if self._helper is not None:
            self._helper.shutdown(cancel_futures=True)
        self._take_back()

    def _next(self, call: Callable[[], Made]) -> Later[Made]:
        before = self._put_off

        def after() -> Made:
            before.result()
            return call()

        self._put_off = Later(after)
        return self._put_off


class Later(Generic[Made]):
    """Something that is done when its result is asked for, once."""

    def __init__(self, call: Callable[[], Made]) -> None:
        self._call: Callable[[], Made] | None = call
        self._made: list[Made] = []

    def result(self) -> Made:
        """What was made."""
        if self._call is not None:
            self._made.append(self._call())
            self._call = None  # and with it what it held
        return self._made[0]
