"""What a run tells while it goes on: phases, and a record now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dfka_dist.config import TrainingSpec
from dfka_dist.losses import LossReport
from dfka_dist.teachers.interface import Teachers

Record = dict[str, Any]


class Diary:
    """Phases and records of one worker.

    Args:
        report: is given each record; None on workers that only follow.
    """

    def __init__(
        self, training: TrainingSpec, teachers: Teachers, report: Callable[[Record], None] | None
    ) -> None:
        self._training, self._teachers, self._report = training, teachers, report
        self.phases: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._before = 0

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        """Everything that is told inside belongs to this phase."""
        began = time.monotonic()
        self._name, self._steps = name, steps
        self._phase_began, self._waited = began, self._teachers.waited
        self._worked = self._teachers.worked
        yield
        self._before += steps
        seconds = round(time.monotonic() - began, 3)
        self.phases.append({"name": name, "steps": steps, "seconds": seconds})

    def tell(self, step: int, *reports: LossReport) -> None:
        """One step of the phase is over, the first is 1; every now and then that is a record."""
        due = step % self._training.report_every == 0 or step == self._steps
        if self._report is None or not due:
            return
        now = time.monotonic()
        elapsed = now - self._phase_began
        waited = (self._teachers.waited - self._waited) / elapsed
        waits = {"teachers": round(waited, 4)}
        if self._worked is not None and self._teachers.worked is not None:
            worked = (self._teachers.worked - self._worked) / elapsed
            waits["trainer"] = round(max(0.0, 1 - worked), 4)
        self._report(
            {
                "phase": self._name,
                "step": step,
                "steps": self._steps,
                "global_step": self._before + step,
                "seconds": round(now - self._began, 3),
                "losses": {
                    name: round(value.item(), 6)
                    for report in reports
                    for name, value in report.terms.items()
                },
                "images_per_second": round(step * self._training.batch_size / elapsed, 1),
                "waits": waits,
            }
        )
