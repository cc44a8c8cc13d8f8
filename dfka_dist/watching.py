"""The driver's eyes on the workers, from their start to their end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from dfka_dist import clusters
from dfka_dist.errors import DfkaError, Interrupted, RunFailed
from dfka_dist.notices import Meeting, News
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
PATIENCE = 45.0
"""Seconds that all workers have to end when one has told why. Ray Train that is killed before its
workers have ended leaves its placement group, on a cluster without a dashboard for good."""


class Watch:
    """On the workers of one run.

    Args:
        conductor: an actor that is a `NoticeBoard`.
        running: what says that Ray Train has ended; a story if it failed.
        stopping: whether they are to make a checkpoint and stop.
        grace: seconds between the word to stop and the end.
    """

    def __init__(
        self, conductor: Any, running: Any, stopping: Callable[[], bool], grace: float
    ) -> None:
        self._conductor, self._running, self._stopping = conductor, running, stopping
        self._grace = grace
        self._latest: float | None = None

    def to_the_end(
        self, on_record: Callable[[Record], None], on_warning: Callable[[str], None]
    ) -> Outcome:
        """Hear what they tell, and what rank 0 returns.

        Raises:
            Interrupted: they were stopped.
            DfkaError: as it was raised in a worker; `RunFailed` for whatever else went wrong.
        """
        over = False
        while not over:
            over = bool(ray.wait([self._running], timeout=POLL_SECONDS)[0])
            news = self._collected()
            for record in news.records:
                on_record(record)
            for warning in news.warnings:
                on_warning(warning)
            if isinstance(news.end, DfkaError):
                # The other workers have met the same, or wait for this one in vain.
                ray.wait([self._running], timeout=PATIENCE)
                self._collected()
                raise news.end
            self._stop_if_told(news.meeting)
        if isinstance(news.end, Outcome):
            return news.end
        raise _failed(ray.get(self._running))

    def _collected(self) -> News:
        news: News = ray.get(self._conductor.collect.remote())
        for story in news.stories:
            # It may be more than what the end of the run has brought about.
            log.info("a worker failed when the run was over: %s", story)
        return news

    def _stop_if_told(self, meeting: Meeting | None) -> None:
        """A node that is drained stops only a run that makes a checkpoint then."""
        keeps = meeting is not None and meeting.keeps
        nodes = meeting.nodes if meeting is not None and keeps else frozenset()
        if self._latest is not None:
            if time.monotonic() > self._latest:
                raise Interrupted(f"stopped; no checkpoint was made within {self._grace:g} s")
        elif self._stopping() or nodes & clusters.draining():
            log.warning("the run is to stop%s", ": making a checkpoint" if keeps else "")
            self._latest = time.monotonic() + self._grace
            self._conductor.stop.remote()


def _failed(story: str | None) -> RunFailed:
    if story is not None:
        log.error("%s", story)
    reason = story.strip().splitlines()[-1] if story else "they ended without a result"
    return RunFailed(f"the training workers failed: {reason}")
