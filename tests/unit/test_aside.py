"""Work in a thread beside the caller's, or without one in the caller's own."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dfka_dist.machine import BEHIND
from dfka_dist.training.aside import HANDOVER, Aside


class Big:
    """Something that would be missed."""

    size = 1


BOTH = pytest.mark.parametrize("helped", [True, False])


@pytest.fixture
def made() -> Iterator[Callable[[bool], Aside]]:
    """A factory; all threads are ended."""
    found = []

    def make(helped: bool) -> Aside:
        found.append(Aside(helped=helped))
        return found[-1]

    yield make
    for aside in found:
        aside.close()


@BOTH
def test_what_was_made_is_the_result_and_made_once(
    made: Callable[[bool], Aside], helped: bool
) -> None:
    calls: list[int] = []
    aside = made(helped)
    for begin in (aside.now, aside.later):
        waiting = begin(lambda: calls.append(1) or len(calls))
        assert waiting.result() == waiting.result() == len(calls)
    assert calls == [1, 1]


@BOTH
def test_what_went_wrong_aside_is_raised_where_the_result_is_asked_for(
    made: Callable[[bool], Aside], helped: bool
) -> None:
    waiting = made(helped).later(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        waiting.result()


def test_a_helper_works_while_the_caller_does(made: Callable[[bool], Aside]) -> None:
    """Each waits for the other: one after the other they would never end."""
    meeting = threading.Barrier(2, timeout=10)
    waiting = made(True).later(meeting.wait)
    meeting.wait()
    assert waiting.result() in (0, 1)


def test_without_a_helper_what_is_begun_now_is_done_before_anything_else(
    made: Callable[[bool], Aside],
) -> None:
    order: list[str] = []
    aside = made(False)
    now = aside.now(lambda: order.append("now"))
    later = aside.later(lambda: order.append("later"))
    order.append("caller")
    now.result(), later.result()
    assert order == ["now", "caller", "later"]


@BOTH
def test_what_was_given_first_is_done_first(made: Callable[[bool], Aside], helped: bool) -> None:
    order: list[str] = []
    aside = made(helped)
    aside.later(lambda: order.append("put off"))
    aside.now(lambda: order.append("now")).result()
    assert order == ["put off", "now"]


def test_nothing_is_held_of_what_is_done(made: Callable[[bool], Aside]) -> None:
    aside, kept = made(False), []
    for _ in range(3):
        big = Big()
        kept.append(weakref.ref(big))
        aside.later(lambda big=big: big.size).result()
    del big
    gc.collect()
    assert [each() for each in kept] == [None, None, None]


def test_a_helper_computes_with_as_many_threads_as_the_caller(
    made: Callable[[bool], Aside],
) -> None:
    assert made(True).later(torch.get_num_threads).result() == torch.get_num_threads()


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What it gives, in a thread whose number of threads and niceness go with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def niceness() -> int:
    """Of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize(("threads", "helped"), [(1, True), (2, False)])
def test_only_a_trainer_with_one_thread_has_a_helper(threads: int, helped: bool) -> None:
    def began() -> bool:
        torch.set_num_threads(threads)
        aside = Aside.fitting(torch.device("cpu"))
        meeting = threading.Event()
        waiting = aside.later(meeting.set)
        found = meeting.wait(timeout=5 if helped else 0.2)
        waiting.result()
        aside.close()
        return found

    before = torch.get_num_threads()
    try:
        assert in_a_thread(began) is helped
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness")
def test_the_caller_gives_way_and_its_helper_does_not() -> None:
    def both() -> tuple[int, int, int, int]:
        before = niceness()
        torch.set_num_threads(1)
        aside = Aside.fitting(torch.device("cpu"))
        found = before, aside.now(niceness).result(), niceness()
        aside.close()
        return *found, niceness()

    before, helping, own, after = in_a_thread(both)
    assert (helping, own) == (before, min(before + BEHIND, 19))
    assert after in (before, own)  # not everybody may go back


@BOTH
def test_what_is_done_widely_has_its_threads_and_nothing_else_has(helped: bool) -> None:
    before = torch.get_num_threads()
    aside = Aside(helped=helped, wide=before + 1)
    try:
        inside = aside.now(lambda: aside.widely(torch.get_num_threads)).result()
        after = aside.now(torch.get_num_threads).result()
    finally:
        aside.close()
    assert (inside, after, torch.get_num_threads()) == (before + 1, before, before)


def test_python_s_lock_is_handed_over_sooner_while_two_threads_compute() -> None:
    def work() -> tuple[float, float]:
        before = sys.getswitchinterval()
        torch.set_num_threads(1)
        aside = Aside.fitting(torch.device("cpu"))
        within = sys.getswitchinterval()
        aside.close()
        assert sys.getswitchinterval() == before
        return before, within

    before, within = in_a_thread(work)
    assert within == pytest.approx(HANDOVER) and within < before
