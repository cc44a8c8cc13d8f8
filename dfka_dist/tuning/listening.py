"""What Ray Tune calls when something happens to a trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.stopper import NoopStopper, Stopper

from dfka_dist.tuning.leaving import Leavers
from dfka_dist.tuning.records import (
    DIED,
    Folder,
    Status,
    TrialRecord,
    is_homeless,
    is_passing,
)
from dfka_dist.tuning.showing import Showing
from dfka_dist.tuning.space import Point
from dfka_dist.tuning.trial import END, METRIC, POINT

log = logging.getLogger(__name__)


MARGIN = 60.0
"""Seconds beyond `training.checkpoint.grace` in which trials that were told to stop come to it."""
LOOKING = 5.0
"""Seconds from one look for another start to the next; so often the time is kept too."""
FAILURES = 5
"""In a row that end a sweep: it is not the points' fault."""


class Switch(Stopper):  # type: ignore[misc]
    """Ends all trials when it is time: tells them, and lets Tune stop them when they have stopped.

    Tune would kill those that run, and what they have started with them.
    """

    def __init__(self, is_over: Callable[[], bool], listener: Listener, patience: float) -> None:
        self._is_over, self._listener, self._patience = is_over, listener, patience
        self._told_at: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended alone."""
        return False

    def stop_all(self) -> bool:
        """Whether it is time, and nothing runs any more."""
        if self._told_at is None:
            if not self._is_over() and self._listener.fatal is None:
                return False
            self._listener.folder.stop()
            self._told_at = time.monotonic()
        late = time.monotonic() - self._told_at > self._patience
        return late or not self._listener.running

    def __reduce__(self) -> Any:
        """Tune keeps a copy of everything, which nobody reads here."""
        return NoopStopper, ()


class Listener(tune.Callback):  # type: ignore[misc]
    """Writes the record of every trial that is over.

    Args:
        began: when the sweep did, all starts together, as `time.monotonic` counts.
        stopping: whether the user asked for the end: what is cut off by that, or by the end of
            `search.seconds`, is no result.
        pilots: whether there is nothing yet that agreements could be compared on.
        at_once: trials that run at the same time.
        leavers: those of its trials that are over.
    """

    def __init__(
        self,
        folder: Folder,
        began: float,
        stopping: Callable[[], bool],
        showing: Showing,
        *,
        pilots: bool,
        at_once: int,
        leavers: Leavers,
    ) -> None:
        self.folder, self._began, self._stopping = folder, began, stopping
        self._showing, self._pilots, self._at_once = showing, pilots, at_once
        self._leavers = leavers
        self.running: dict[str, tuple[float, list[float]]] = {}
        """By name when each trial began, and its agreements."""
        self.fatal: str | None = None
        """Why no trial more should be tried."""
        self._ends: dict[str, Status] = {}
        self._failures = self._homeless = 0
        self.passed: str | None = None
        """Why the last trial ended that is to be tried again."""
        self._looked = time.monotonic()
        self._warned: dict[str, int] = {}

    def __reduce__(self) -> Any:
        """Tune keeps a copy of everything, which nobody reads here."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        self.running[trial.trial_id] = (time.monotonic(), [])
        self._showing.begun(trial.trial_id, _point(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `ray.tune.Callback`."""
        _, own = self.running[trial.trial_id]
        if result[END] is not None:
            self._ends[trial.trial_id] = result[END]
        if result[END] != "stopped" and not self._pilots:
            own.append(float(result[METRIC]))
            self._showing.judged(trial.trial_id, own)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        self._leavers.told(trial.trial_id)
        self._pass_on(trial.trial_id)
        if trial.trial_id not in self.running:
            return
        _, own = self.running[trial.trial_id]
        status = self._ends.get(trial.trial_id, "stopped")
        self._failures = self._homeless = 0
        is_cut = self._stopping() or self.folder.is_stopped
        if status == "finished" or (own and not is_cut):
            self._keep(trial, status)
        elif is_cut:
            self._showing.dropped(trial.trial_id, "it was time")
        del self.running[trial.trial_id]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        self._pass_on(trial.trial_id)
        why = self.folder.why(trial.trial_id)
        log.error("trial %s failed: %s", trial.trial_id, why)
        if why == DIED:
            self._leavers.died(trial.trial_id)
        if self._stopping() or self.folder.is_stopped:
            self.folder.drop(trial.trial_id)  # who is told to stop is not at fault
        else:
            self._judge(trial, why)
            self._count(why)
        self.running.pop(trial.trial_id, None)

    def _judge(self, trial: Any, why: str) -> None:
        """Whether a failure is a result."""
        if is_passing(why):
            self.passed = why
            self.folder.drop(trial.trial_id)
            self._showing.dropped(trial.trial_id, why)
        else:
            self._keep(trial, "failed", why)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """See `ray.tune.Callback`."""
        self._leavers.look(alone=not self.running)
        if time.monotonic() - self._looked > LOOKING:
            self._looked = time.monotonic()
            for name in list(self.running):
                self._pass_on(name)
            if not self._see_another_start():
                self.folder.keep_elapsed(self._looked - self._began)

    def _pass_on(self, name: str) -> None:
        """What a trial warned of since the last look."""
        lines = self.folder.warnings(name)
        for line in lines[self._warned.get(name, 0) :]:
            log.warning("trial %s: %s", name, line)
            self._showing.message(f"warning: trial {name}: {line}")
        self._warned[name] = len(lines)

    def _see_another_start(self) -> bool:
        """Whether there is a newer start of the sweep: nothing is written then, and all end."""
        crossed = self.folder.crossed()
        self.fatal = crossed or self.fatal
        return crossed is not None

    def _count(self, why: str) -> None:
        """Whether no trial more should be tried, as no room is found or all fail."""
        if is_homeless(why):
            self._homeless += not any(map(self.folder.is_housed, self.running))
            if self._homeless >= self._at_once:
                self.fatal = f"no trial finds room: {why.partition(': ')[2]}"
            return
        self._homeless = 0
        self._failures += 1
        if self._failures == FAILURES:
            self.fatal = f"{FAILURES} trials failed one after another, the last: {why}"
            self.fatal += "; is there memory enough?" if why == DIED else ""

    def _keep(self, trial: Any, status: Status, why: str | None = None) -> None:
        if self._see_another_start():
            return
        now = time.monotonic()
        began, agreements = self.running.get(trial.trial_id, (now, []))
        record = TrialRecord(
            number=len(self.folder.records()),
            name=trial.trial_id,
            point=_point(trial),
            status=status,
            pilot=self._pilots,
            agreements=agreements,
            seconds=round(now - began, 1),
            ended=round(now - self._began, 1),
            why=why,
        )
        try:
            self.folder.write(record)
        except OSError as error:  # what cannot be kept is to be tried again
            self.fatal = f"trial {trial.trial_id} cannot be kept: {error}"
            return
        self._showing.ended(record)


def _point(trial: Any) -> Point:
    found: Point = trial.config.get(POINT, trial.config)
    return dict(found)
