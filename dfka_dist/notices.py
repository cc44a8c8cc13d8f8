"""What workers tell the driver, and the driver them, by way of an actor beside it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from dfka_dist.errors import DfkaError
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome

ASKED_EVERY = 0.5
"""Seconds between two questions of a worker whether it is to stop."""

End = Outcome | DfkaError
"""How a run ended."""


@dataclass(frozen=True)
class Seat:
    """Where a worker is."""

    node: str
    """Its id."""
    address: str


@dataclass(frozen=True)
class Meeting:
    """What workers found when they met, all that there are now."""

    seats: tuple[Seat, ...]
    """By rank."""
    keeps: bool
    """Whether they make checkpoints."""

    @property
    def nodes(self) -> frozenset[str]:
        """Ids of those that they are on."""
        return frozenset(seat.node for seat in self.seats)


@dataclass(frozen=True)
class Failure:
    """Of a worker, in a collective."""

    rank: int
    step: int
    """Of all phases, that it was in."""
    waited: bool
    """It waited for others longer than it may."""
    story: str


@dataclass
class News:
    """What the driver has not heard yet."""

    records: list[Record] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """What the user may want to know."""
    stories: list[str] = field(default_factory=list)
    """Of workers that failed when the run was over."""
    end: End | None = None
    meeting: Meeting | None = None
    waited: dict[int, int] = field(default_factory=dict)
    """Steps by the ranks of those that waited in a collective longer than they may, and of those
    that were in it then."""
    alone: float | None = 0.0
    """Seconds without any worker; None while there are some."""
    quiet: float = 0.0
    """Seconds without a sign of any worker: a step, or a word."""
    controller: str | None = None
    """Ray Train's, its id as an actor."""
    cleaner: Any = None
    """An actor that removes the placement group of a controller that is dead."""


class NoticeBoard:
    """Keeps what is told until somebody collects it."""

    def __init__(self) -> None:
        self._news = News()
        self._stops = False
        self._alone_since: float | None = time.monotonic()
        self._heard = time.monotonic()
        self._turn = 0
        self._controller: str | None = None
        self._cleaner: Any = None

    def stand(self, turn: int, *, stands: bool, controller: str) -> None:
        """Workers are there, or not.

        Args:
            turn: 1, 2, ...; an earlier one may arrive later.
            controller: who says so.
        """
        if turn < self._turn:
            return
        self._turn, self._controller, self._heard = turn, controller, time.monotonic()
        self._alone_since = None if stands else self._alone_since or time.monotonic()

    def clean(self, cleaner: Any) -> None:
        """There is an actor that cleans up behind the controller."""
        self._cleaner = cleaner

    def meet(self, meeting: Meeting) -> None:
        """Workers are there; those of before are gone, and with them where they were."""
        self._news.meeting, self._news.waited = meeting, {}
        self._heard = time.monotonic()

    def post(self, record: Record) -> None:
        """A record of the run."""
        self._news.records.append(record)
        self._heard = time.monotonic()

    def warn(self, warning: str) -> None:
        """Something that the user should know."""
        self._news.warnings.append(warning)

    def say(self, word: str) -> None:
        """Something that the user may want to know."""
        self._news.words.append(word)
        self._heard = time.monotonic()

    def fail(self, failure: Failure) -> bool:
        """A worker has failed in a collective.

        Returns:
            whether the run is over, so that this is no reason to start workers again: one that
            waited too long ends it, and all that were in that collective fail.
        """
        if failure.waited or self._news.waited:
            self._news.waited[failure.rank] = failure.step
        elif self._news.end is None:
            return False
        self._news.stories.append(f"worker {failure.rank}: {failure.story}")
        return True

    def end(self, end: End) -> None:
        """The run is over; the first word counts."""
        self._news.end = self._news.end or end

    def collect(self) -> News:
        """What is new, and what stays as it is."""
        news = self._news
        self._news = News(end=news.end, meeting=news.meeting, waited=news.waited)
        since = self._alone_since
        news.alone = None if since is None else time.monotonic() - since
        news.quiet = time.monotonic() - self._heard
        news.controller, news.cleaner = self._controller, self._cleaner
        return news

    def stop(self) -> None:
        """Tell the workers to stop."""
        self._stops = True

    def stops(self) -> bool:
        """Whether they are to; a worker asks at its steps."""
        self._heard = time.monotonic()
        return self._stops


class Inbox:
    """A worker's way to the board; what is told arrives in the order in which it was told.

    Ray promises no order to an actor of several threads.

    Args:
        board: an actor that is a `NoticeBoard`.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._asked, self._asked_at = board.stops.remote(), time.monotonic()
        self._told = self._asked
        self._stops = False

    def meet(self, meeting: Meeting) -> None:
        """Workers have met."""
        ray.get(self._board.meet.remote(meeting))

    def steps_on(self, shelf: Any) -> list[int]:
        """Of the checkpoints on a shelf, as the board sees them, which is beside the driver."""
        steps: list[int] = ray.get(self._board.steps_on.remote(shelf))
        return steps

    def post(self, record: Record) -> None:
        """A record of the run."""
        ray.get(self._told)  # has long arrived
        self._told = self._board.post.remote(record)

    def warn(self, warning: str) -> None:
        """Something that the user should know."""
        self._board.warn.remote(warning)

    def say(self, word: str) -> None:
        """Something that the user may want to know."""
        ray.get(self._board.say.remote(word))

    def stopping(self) -> bool:
        """Whether the run was told to stop; asks now and then, and never waits."""
        is_answered = bool(ray.wait([self._asked], timeout=0)[0])
        if is_answered and time.monotonic() - self._asked_at > ASKED_EVERY:
            self._stops = ray.get(self._asked)
            self._asked, self._asked_at = self._board.stops.remote(), time.monotonic()
        return self._stops

    def fail(self, failure: Failure) -> bool:
        """This worker has failed in a collective; see `NoticeBoard`. Returns when that has arrived,
        and, if it is for others to say why, when they had the time to."""
        over: bool = ray.get(self._board.fail.remote(failure))
        if not over:
            time.sleep(ASKED_EVERY)
            over = ray.get(self._board.fail.remote(failure))
        return over

    def end(self, end: End) -> None:
        """The run is over; returns when that has arrived, behind all that was told before."""
        ray.get(self._told)
        ray.get(self._board.end.remote(end))


class Warner(logging.Handler):
    """Sends warnings of a worker's log to the driver, which has no other sight of it."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(logging.WARNING)
        self._inbox = inbox

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._inbox.warn(record.getMessage())
