"""What a run tells while it goes on: phases, and a record now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
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
        self._name, self._step, self._earlier = "", 0, 0.0
        self._records: list[Record] = []
        self._before = self._began, *self._so_far()

    @property
    def is_heard(self) -> bool:
        """Whether anybody is told what this worker writes."""
        return self._report is not None

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[int]:
        """Everything that is told inside belongs to this phase; gives how many of its steps were
        done before an interruption."""
        if name != self._name:
            self._step, self._earlier = 0, 0.0
        self._name, self._steps = name, steps
        self._phase_began = time.monotonic()
        self._waits_until(self._phase_began)
        yield self._step
        seconds = round(self._phase_seconds, 3)
        self.phases.append({"name": name, "steps": steps, "seconds": seconds})
        self._name, self._step = "", 0

    def is_over(self, name: str) -> bool:
        """Whether a phase has come to its end."""
        return any(phase["name"] == name for phase in self.phases)

    @property
    def global_step(self) -> int:
        """Steps of all phases so far."""
        return sum(int(phase["steps"]) for phase in self.phases) + self._step

    @property
    def _phase_seconds(self) -> float:
        return self._earlier + time.monotonic() - self._phase_began

    def state(self) -> dict[str, Any]:
        """What it takes to go on."""
        return {
            "phases": self.phases,
            "phase": self._name,
            "step": self._step,
            "phase_seconds": self._phase_seconds,
            "seconds": time.monotonic() - self._began,
            "records": self._records,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where a diary was; all its records are told again, for nobody may have heard the
        last of them."""
        self.phases = list(state["phases"])
        self._name, self._step = str(state["phase"]), int(state["step"])
        self._earlier = float(state["phase_seconds"])
        self._began = time.monotonic() - float(state["seconds"])
        for record in state["records"]:
            self._write(record)

    def tell(self, step: int, *reports: LossReport) -> None:
        """One step of the phase is over, the first is 1; every now and then that is a record."""
        self._step = step
        due = step % self._training.report_every == 0 or step == self._steps
        if self._report is None or not due:
            return
        now = time.monotonic()
        pace = step * self._training.batch_size / self._phase_seconds
        self._write(
            {
                "phase": self._name,
                "step": step,
                "steps": self._steps,
                "global_step": self.global_step,
                "seconds": round(now - self._began, 3),
                "losses": {
                    name: round(value.item(), 6)
                    for report in reports
                    for name, value in report.terms.items()
                },
                "images_per_second": round(pace, 1),
                "waits": self._waits_until(now),
            }
        )

    def _waits_until(self, now: float) -> dict[str, float]:
        """Shares of the time since the last record in which this thread stood still for the
        teachers, they for the trainer, and the thread that helps this one, if there is any, for
        the teachers."""
        waited, beside, worked = self._so_far()
        before, self._before = self._before, (now, waited, beside, worked)
        elapsed = now - before[0]
        waits = {"teachers": round((waited - before[1]) / elapsed, 4)}
        if worked is not None and before[3] is not None:
            waits["trainer"] = round(max(0.0, 1 - (worked - before[3]) / elapsed), 4)
        if beside:
            waits["helper"] = round((beside - before[2]) / elapsed, 4)
        return waits

    def _so_far(self) -> tuple[float, float, float | None]:
        teachers = self._teachers
        return teachers.waited, teachers.waited_beside, teachers.worked

    def judge(self, agreement: float) -> None:
        """What the dual generator is worth after this step, on a probe set that is given."""
        if self._report is not None:
            where = {"phase": self._name, "step": self._step, "steps": self._steps}
            self._report({**where, "global_step": self.global_step, "agreement": agreement})

    def _write(self, record: Record) -> None:
        self._records.append(record)
        if self._report is not None:
            self._report(record)
