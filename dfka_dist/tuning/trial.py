"""One trial: a light driver of a whole run, which Ray Tune may stop at its moments."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import tune
from torch import Tensor

from dfka_dist import launch
from dfka_dist.errors import Interrupted
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.training.diary import Record
from dfka_dist.training.finishing import agreement
from dfka_dist.training.probe import Contest
from dfka_dist.tuning.leaving import prefix
from dfka_dist.tuning.records import Folder
from dfka_dist.tuning.space import Space

METRIC = "agreement"
"""With the teachers, on the probe set that all trials have in common."""
END = "end"
"""Of a result: how the trial ended, None while it goes on."""
POINT = "point"
"""Key of a whole point, where it was not Tune that made it."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Ring:
    """What all trials of a sweep share."""

    space: Space
    teachers: ServedTeachers
    start: dict[str, Tensor] | None
    folder: Folder
    """On this machine: trials are beside the driver."""
    concurrent: int
    threads: int | None
    """Of every worker, where the run does not say itself and trials share machines."""


@dataclass(frozen=True)
class Entry:
    """What a trial is given."""

    ring: Ring
    contest: Contest


class Trial(tune.Trainable):  # type: ignore[misc]
    """A run of the launcher in a thread of its own; a step lasts until it is judged.

    Stopped, it lets its workers end at the end of a step, so that nothing of them is left.
    """

    def setup(self, config: dict[str, Any], entry: Entry) -> None:
        """Begin; see `ray.tune.Trainable`."""
        self._entry, self._point = entry, config.get(POINT, config)
        self._stop = threading.Event()
        self._told: queue.Queue[Result | Exception] = queue.Queue()
        self._last, self._seen, self._housed = 0.0, -1, False
        entry.ring.folder.began(self.trial_id)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def step(self) -> Result:
        """Wait for the next judgement.

        Raises:
            DfkaError: the run failed.
        """
        told = self._told.get()
        if isinstance(told, Exception):
            raise told
        return told

    def cleanup(self) -> None:
        """Stop the run if it goes on, and wait for its end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._told.put(self._finished())
        except Interrupted:
            self._told.put({METRIC: self._last, END: "stopped", "done": True})
        except Exception as error:  # raised again in `step`, where Tune hears it
            try:
                self._entry.ring.folder.failed(self.trial_id, error)
            finally:
                self._told.put(error)
        finally:
            self._entry.ring.folder.ended(self.trial_id)

    def _finished(self) -> Result:
        ring = self._entry.ring
        if self._is_to_stop():
            raise Interrupted("stopped before it began")
        config = ring.space.trial(self._point)
        threads = config.training.threads or ring.threads
        training = config.training.model_copy(update={"threads": threads})
        outcome = launch.amalgamate(
            config.model_copy(update={"training": training}),
            ring.teachers,
            self._on_record,
            ring.start,
            stopping=self._is_to_stop,
            on_warning=partial(ring.folder.warn, self.trial_id),
            contest=self._entry.contest,
            prefix=prefix(self.trial_id),
        )
        ring.folder.leave(self.trial_id, outcome)
        return {METRIC: agreement(outcome.network), END: "finished", "done": True}

    def _is_to_stop(self) -> bool:
        return self._stop.is_set() or self._entry.ring.folder.is_stopped

    def _on_record(self, record: Record) -> None:
        """Pass a judgement on, once: workers that were started again begin anew."""
        if not self._housed:
            self._housed = True
            self._entry.ring.folder.housed(self.trial_id)
        if METRIC in record and record["global_step"] > self._seen:
            self._last, self._seen = record[METRIC], record["global_step"]
            self._told.put({METRIC: self._last, END: None})
