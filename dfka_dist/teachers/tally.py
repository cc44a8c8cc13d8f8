"""Figures that are added up in Python and told to whoever publishes them now and then.

Telling each of some figures of each request costs more than the figures are worth.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Tags = dict[str, str]
Key = tuple[Any, tuple[tuple[str, str], ...]]
EVERY = 1.0
"""Seconds between two tellings."""


class Tally:
    """What was counted, seen and set since it was told last; for several threads.

    Meters are Ray's: counters, histograms and gauges, which have `inc`, `observe` and `set`.

    Args:
        is_heard: whether anybody is there to be told; otherwise `tell_soon` tells nothing.
    """

    def __init__(self, is_heard: Callable[[], bool] = lambda: True) -> None:
        self._lock, self._is_heard = threading.Lock(), is_heard
        self._counts: defaultdict[Key, float] = defaultdict(float)
        self._values: defaultdict[Key, list[float]] = defaultdict(list)
        self._states: dict[Key, float] = {}
        self._is_due = False

    def count(self, counter: Any, amount: float, **tags: str) -> None:
        """So much more of something; nothing if that is nothing."""
        if amount > 0:
            with self._lock:
                self._counts[_key(counter, tags)] += amount

    def observe(self, histogram: Any, value: float, **tags: str) -> None:
        """One more value."""
        with self._lock:
            self._values[_key(histogram, tags)].append(value)

    def set(self, gauge: Any, value: float, **tags: str) -> None:
        """How much there is now; only the last is told."""
        with self._lock:
            self._states[_key(gauge, tags)] = value

    def tell(self) -> None:
        """Hand everything on."""
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            values, self._values = self._values, defaultdict(list)
            states, self._states = self._states, {}
        for (counter, tags), amount in counts.items():
            counter.inc(amount, dict(tags))
        for (histogram, tags), seen in values.items():
            for value in seen:
                histogram.observe(value, dict(tags))
        for (gauge, tags), state in states.items():
            gauge.set(state, dict(tags))

    def tell_soon(self) -> None:
        """Hand everything on in a moment: so the last is told, which nobody knows for the last."""
        with self._lock:
            was_due, self._is_due = self._is_due, True
        if not was_due:
            timer = threading.Timer(EVERY, self._tell_once)
            timer.daemon = True
            timer.start()

    def _tell_once(self) -> None:
        with self._lock:
            self._is_due = False
        if self._is_heard():
            self.tell()

    def keep_telling(self) -> None:
        """Hand everything on every so often, in a thread that ends with the process."""
        threading.Thread(target=self._tell_on, name="tally", daemon=True).start()

    def _tell_on(self) -> None:
        never = threading.Event()
        while not never.wait(EVERY):
            self.tell()


def _key(meter: Any, tags: Tags) -> Key:
    return meter, tuple(tags.items())
