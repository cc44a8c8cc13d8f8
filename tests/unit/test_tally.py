"""What is added up is told as if each figure had been told by itself."""

from __future__ import annotations

import threading
import time
from typing import Any

from dfka_dist.teachers.tally import EVERY, Tally


class Meter:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def __getattr__(self, way: str) -> Any:
        assert way in ("inc", "observe", "set")
        return lambda value, tags: self.told.append((value, tags))


def test_counts_are_told_as_their_sum() -> None:
    tally, meter = Tally(), Meter()
    for amount in (1, 2, 4):
        tally.count(meter, amount, way="in")
    tally.count(meter, 8, way="out")
    tally.tell()
    assert meter.told == [(7, {"way": "in"}), (8, {"way": "out"})]


def test_every_value_of_a_histogram_is_told() -> None:
    tally, meter = Tally(), Meter()
    for value in (0.5, 0.25):
        tally.observe(meter, value, kind="forward")
    tally.tell()
    assert meter.told == [(0.5, {"kind": "forward"}), (0.25, {"kind": "forward"})]


def test_of_a_gauge_the_last_value_is_told() -> None:
    tally, meter = Tally(), Meter()
    tally.set(meter, 1)
    tally.set(meter, 0)
    tally.tell()
    assert meter.told == [(0, {})]


def test_nothing_is_told_twice_or_before_it_is_asked_for() -> None:
    tally, meter = Tally(), Meter()
    tally.count(meter, 1)
    before = list(meter.told)
    tally.tell(), tally.tell()
    assert before == [] and len(meter.told) == 1


def test_a_count_of_nothing_is_not_told() -> None:
    """Ray's counters refuse it."""
    tally, meter = Tally(), Meter()
    tally.count(meter, 0)
    tally.tell()
    assert meter.told == []


def test_nothing_that_several_threads_count_is_lost() -> None:
    tally, meter = Tally(), Meter()

    def count() -> None:
        for _ in range(1000):
            tally.count(meter, 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.tell()
    tally.tell()
    assert sum(value for value, _ in meter.told) == 4000


def test_the_last_is_told_although_nothing_comes_after_it() -> None:
    tally, meter = Tally(), Meter()
    for value in (1, 2, 0):
        tally.set(meter, value)
        tally.tell_soon()
    latest = time.monotonic() + 5 * EVERY
    while not meter.told and time.monotonic() < latest:
        time.sleep(0.01)
    assert meter.told == [(0, {})]


def test_nothing_is_told_soon_where_nobody_is_there_any_more() -> None:
    heard = threading.Event()
    tally, meter = Tally(lambda: heard.set() or False), Meter()
    tally.set(meter, 1)
    tally.tell_soon()
    assert heard.wait(5 * EVERY)
    assert meter.told == []
