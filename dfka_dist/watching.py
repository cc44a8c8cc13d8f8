"""The driver's eyes on the workers, from their start to their end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from dfka_dist import clusters
from dfka_dist.config import TrainingSpec
from dfka_dist.errors import DfkaError, Interrupted, NoRoom, RunFailed
from dfka_dist.notices import Meeting, News
from dfka_dist.teachers.pool import free_now
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
ALL_IN = 2.0
"""Seconds in which those that wait in one collective say so after the first."""
PATIENCE = 10.0
"""Seconds that all workers have to end when one has told why; those that have not are killed."""
REMINDING = 60.0
"""Seconds without any worker from one warning to the next."""
QUIET = 900.0
"""Seconds without a sign of any worker from one warning to the next, if they may not wait longer
for each other."""


class Watch:
    """On the workers of one run.

    Args:
        conductor: an actor that is a `NoticeBoard`.
        running: what says that Ray Train has ended; a story if it failed.
        stopping: whether they are to make a checkpoint and stop.
        training: how long workers may wait, and take to stop.
    """

    def __init__(
        self, conductor: Any, running: Any, stopping: Callable[[], bool], training: TrainingSpec
    ) -> None:
        self._conductor, self._running, self._stopping = conductor, running, stopping
        self._training = training
        self._home = ray.get_runtime_context().get_node_id()
        self._timeout, self._grace = training.timeout, training.checkpoint.grace
        self.controller: str | None = None
        """Ray Train's, its id as an actor, as soon as that is known."""
        self.cleaner: Any = None
        """Ray Train's actor that cleans up behind it, as soon as that is known."""
        self._reminded, self._told_quiet = 0, 0
        self._latest: float | None = None
        self._all_in: float | None = None

    def to_the_end(
        self,
        on_record: Callable[[Record], None],
        on_warning: Callable[[str], None],
        on_word: Callable[[str], None] = log.info,
    ) -> Outcome:
        """Hear what they tell, and what rank 0 returns.

        Raises:
            Interrupted: they were stopped.
            NoRoom: none was there for `training.start_timeout`.
            RunFailed: none came to another step for `training.quiet_timeout`.
            DfkaError: as it was raised in a worker; `RunFailed` for whatever else went wrong.
        """
        over = False
        while not over:
            over = bool(ray.wait([self._running], timeout=POLL_SECONDS)[0])
            news = self._collected()
            for word in news.words:
                on_word(word)
            for record in news.records:
                on_record(record)
            for warning in news.warnings:
                on_warning(warning)
            failure = news.end if isinstance(news.end, DfkaError) else self._late(news, over)
            if failure is not None:
                # The others have met the same, or wait for this one in vain, or hang.
                ray.wait([self._running], timeout=ALL_IN if news.waited else PATIENCE)
                self._collected()
                raise failure
            if not over and news.alone is not None:
                self._remind(news.alone, on_warning)
            if not over and news.alone is None:
                self._remind_of_quiet(news.quiet, on_warning)
            self._stop_if_told(news.meeting)
        if isinstance(news.end, Outcome):
            return news.end
        raise _failed(ray.get(self._running))

    def _collected(self) -> News:
        news: News = ray.get(self._conductor.collect.remote())
        self.controller, self.cleaner = news.controller, news.cleaner
        if news.alone is None:
            self._reminded = 0
        for story in news.stories:
            # It may be more than what the end of the run has brought about.
            log.info("a worker failed when the run was over: %s", story)
        return news

    def _late(self, news: News, over: bool) -> RunFailed | None:
        """Why workers waited for others too long, when all have said so that did."""
        if not news.waited:
            return None
        self._all_in = self._all_in or time.monotonic() + ALL_IN
        if not over and time.monotonic() < self._all_in:
            return None
        return RunFailed(lateness(news.meeting, news.waited, self._timeout))

    def _remind(self, alone: float, on_warning: Callable[[str], None]) -> None:
        """Say now and then that no worker is there, and end the run when that lasts too long."""
        latest = self._training.start_timeout
        if alone < min((self._reminded + 1) * REMINDING, latest):
            return
        self._reminded = int(alone // REMINDING)
        what = f"no worker for {alone:.0f} s: {wanted(self._training)}; free now: {free_now()}"
        if alone >= latest:
            raise NoRoom(
                f"{what}; ask for less under training, or wait longer with training.start_timeout"
            )
        on_warning(what)

    def _remind_of_quiet(self, quiet: float, on_warning: Callable[[str], None]) -> None:
        """Say now and then that workers are there, and come to no other step: all may hang, or the
        only one, which nobody waits for; or what they are at takes long. End the run when that
        lasts too long."""
        what = f"no worker has come to another step for {quiet:.0f} s"
        if quiet >= self._training.quiet_timeout:
            longer = "if something takes that long, more of training.quiet_timeout"
            raise RunFailed(f"{what}; --resume goes on, {longer}")
        times = int(quiet // max(QUIET, self._timeout))
        if times > self._told_quiet:
            on_warning(f"{what}; if nothing takes that long, stop the run and --resume it")
        self._told_quiet = times

    def _stop_if_told(self, meeting: Meeting | None) -> None:
        """A node that is drained stops only a run that makes a checkpoint then."""
        keeps = meeting is not None and meeting.keeps
        nodes = meeting.nodes | {self._home} if meeting is not None and keeps else frozenset()
        if self._latest is not None:
            if time.monotonic() > self._latest:
                raise Interrupted(f"stopped; no checkpoint was made within {self._grace:g} s")
        elif self._stopping() or nodes & clusters.draining():
            log.warning("the run is to stop%s", ": making a checkpoint" if keeps else "")
            self._latest = time.monotonic() + self._grace
            self._conductor.stop.remote()


def wanted(training: TrainingSpec) -> str:
    """What Ray is asked for, for the workers."""
    fewest, most = training.worker_range[0], training.worker_range[-1]
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    gpus = f" and {training.worker_gpus} GPU" if training.worker_gpus else ""
    where = f" on nodes with {training.node_labels}" if training.node_labels else ""
    return f"wanted are {count} of {training.worker_cpus:g} CPU{gpus}{where}"


def lateness(meeting: Meeting | None, waited: Mapping[int, int], timeout: float) -> str:
    """Who came and who did not, where workers waited for each other too long.

    Args:
        waited: steps by the ranks of those that waited.
    """
    seats = dict(enumerate(meeting.seats)) if meeting is not None else {}

    def named(ranks: Iterable[int]) -> str:
        return ", ".join(
            f"worker {r}" + (f" on {seats[r].address}" if r in seats else "") for r in ranks
        )

    late = named(sorted(seats.keys() - waited.keys()))
    awaited = late or "others that waited too: look at the network between them"
    return (
        f"{named(sorted(waited))} waited at step {max(waited.values())} for longer than "
        f"training.timeout ({timeout:g} s) for {awaited}"
    )


def _failed(story: str | None) -> RunFailed:
    if story is not None:
        log.error("%s", story)
    reason = story.strip().splitlines()[-1] if story else "they ended without a result"
    return RunFailed(f"the training workers failed: {reason}")
