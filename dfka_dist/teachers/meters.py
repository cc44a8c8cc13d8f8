"""What servers and clients tell Ray's metrics, from where Prometheus reads them.

Seconds in the queue are from when a client asked until a server began, by the clocks of both; they
are told by the server that a question comes to first, and hold what a client waited for admission.
Figures are handed to Ray once a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util import metrics

from dfka_dist.teachers.tally import Tally

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Bounds of the histograms' buckets."""


class ServerMeters:
    """Of one server.

    Args:
        teacher, replica, shard: who serves.
    """

    def __init__(self, teacher: str, replica: int, shard: int) -> None:
        own = {"teacher": teacher, "replica": str(replica), "shard": str(shard)}
        keys = tuple(own)
        calls = (*keys, "kind")
        self._requests = metrics.Counter(
            "dfka_teacher_requests", "Questions and pullbacks that were answered.", calls
        )
        self._queued = metrics.Histogram(
            "dfka_teacher_queue_seconds", "From asking until a server began.", SECONDS, calls
        )
        self._computing = metrics.Histogram(
            "dfka_teacher_compute_seconds", "Within the network, there or back.", SECONDS, calls
        )
        self._bytes = metrics.Counter(
            "dfka_teacher_bytes", "Arrays that came in and went out.", (*keys, "way")
        )
        self._hits = metrics.Counter(
            "dfka_teacher_graph_hits", "Pullbacks whose graph was kept.", keys
        )
        self._recomputed = metrics.Counter(
            "dfka_teacher_graph_recomputes", "Pullbacks whose graph was made again.", keys
        )
        self._kept = metrics.Gauge("dfka_teacher_graph_bytes", "What kept graphs hold.", keys)
        for meter in vars(self).values():
            meter.set_default_tags(own)
        self._tally = Tally()
        self._tally.keep_telling()

    @contextmanager
    def call(self, kind: str, asked_at: float | None) -> Iterator[Watch]:
        """One call from beginning to end.

        Args:
            asked_at: as `time.time` says; None for what comes from another shard.
        """
        if asked_at is not None:
            self._tally.observe(self._queued, max(0.0, time.time() - asked_at), kind=kind)
        watch = Watch()
        yield watch
        self._tally.observe(self._computing, watch.seconds, kind=kind)
        self._tally.count(self._requests, 1, kind=kind)
        self._tally.count(self._bytes, watch.bytes_in, way="in")
        self._tally.count(self._bytes, watch.bytes_out, way="out")

    def graphs(self, kept_bytes: int, recomputed: bool | None = None) -> None:
        """What is kept now, and whether a pullback had to make its graph again."""
        self._tally.set(self._kept, kept_bytes)
        if recomputed is not None:
            self._tally.count(self._recomputed if recomputed else self._hits, 1)


@dataclass
class Watch:
    """What one call took; filled while it goes on."""

    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    """Within the network; what comes and goes is not in it."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The network computes."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """In between it waits for something."""
        began = time.perf_counter()
        yield
        self.seconds -= time.perf_counter() - began


class ClientMeters:
    """Of one client."""

    def __init__(self) -> None:
        self._in_flight = metrics.Gauge(
            "dfka_teacher_in_flight", "Calls of one client that are out.", ("teacher",)
        )
        self._waited = metrics.Counter(
            "dfka_client_wait_seconds", "How long a client stood still for its teachers.", ()
        )
        self._tally = Tally(ray.is_initialized)  # a client outlives Ray

    def outstanding(self, teacher: str, calls: int) -> None:
        """How many are out with all replicas of a teacher."""
        self._tally.set(self._in_flight, calls, teacher=teacher)
        self._tally.tell_soon()

    def waited(self, seconds: float) -> None:
        """A client has stood still."""
        self._tally.count(self._waited, seconds)
        self._tally.tell_soon()
