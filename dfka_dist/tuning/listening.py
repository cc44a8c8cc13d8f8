"""What Ray Tune calls when something happens to a trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.stopper import NoopStopper, Stopper

from dfka_dist.tuning.records import Folder, Status, TrialRecord
from dfka_dist.tuning.showing import Showing
from dfka_dist.tuning.space import Point
from dfka_dist.tuning.trial import METRIC, POINT

log = logging.getLogger(__name__)


class Switch(Stopper):  # type: ignore[misc]
    """Ends all trials when it is time."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended alone."""
        return False

    def stop_all(self) -> bool:
        """Whether it is time."""
        return self._is_over()

    def __reduce__(self) -> Any:
        """Tune keeps a copy of everything, which nobody reads here."""
        return NoopStopper, ()


class Listener(tune.Callback):  # type: ignore[misc]
    """Writes the record of every trial that is over.

    Args:
        began: when the sweep did, all starts together, as `time.monotonic` counts.
        stopping: whether the user asked for the end: what is cut off by that is no result.
        pilots: whether there is nothing yet that agreements could be compared on.
    """

    def __init__(
        self,
        folder: Folder,
        began: float,
        stopping: Callable[[], bool],
        showing: Showing,
        *,
        pilots: bool,
    ) -> None:
        self._folder, self._began, self._stopping = folder, began, stopping
        self._showing, self._pilots = showing, pilots
        self._running: dict[str, tuple[float, list[float]]] = {}
        self._finished: set[str] = set()

    def __reduce__(self) -> Any:
        """Tune keeps a copy of everything, which nobody reads here."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        self._running[trial.trial_id] = (time.monotonic(), [])
        self._showing.begun(trial.trial_id, _point(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `ray.tune.Callback`."""
        if self._pilots:
            own: list[float] = []
        else:
            own = self._running[trial.trial_id][1]
            own.append(float(result[METRIC]))
        if result["ends"]:
            self._finished.add(trial.trial_id)
        self._showing.judged(trial.trial_id, own)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        is_finished = trial.trial_id in self._finished
        if is_finished or (self._running.get(trial.trial_id, (0, []))[1] and not self._stopping()):
            self._keep(trial, "finished" if is_finished else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `ray.tune.Callback`."""
        why = self._folder.why(trial.trial_id)
        log.error("trial %s failed: %s", trial.trial_id, why)
        self._keep(trial, "failed", why)

    def _keep(self, trial: Any, status: Status, why: str | None = None) -> None:
        now = time.monotonic()
        began, agreements = self._running.get(trial.trial_id, (now, []))
        record = TrialRecord(
            number=len(self._folder.records()),
            name=trial.trial_id,
            point=_point(trial),
            status=status,
            pilot=self._pilots,
            agreements=agreements,
            seconds=round(now - began, 1),
            ended=round(now - self._began, 1),
            why=why,
        )
        self._folder.write(record)
        self._showing.ended(record)


def _point(trial: Any) -> Point:
    found: Point = trial.config.get(POINT, trial.config)
    return dict(found)
