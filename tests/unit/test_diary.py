"""What a run tells of its steps."""

from __future__ import annotations

import time

import pytest

from dfka_dist.config import TrainingSpec
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.training.diary import Diary, Record


class Timed(LocalTeachers):
    """Teachers whose times are told."""

    waited = waited_beside = 0.0
    worked = 0.0  # type: ignore[assignment]


def told(*steps: tuple[float, float, float]) -> list[dict[str, float]]:
    """The waits of each record: of steps of so many seconds, of which so many were waited by the
    trainer and worked by the teachers."""
    teachers, records = Timed({}), list[Record]()
    diary = Diary(TrainingSpec(report_every=1), teachers, records.append)
    with diary.phase("joint", len(steps)):
        for step, (seconds, waited, worked) in enumerate(steps, 1):
            time.sleep(seconds)
            teachers.waited += waited
            teachers.worked += worked
            diary.tell(step)
    return [record["waits"] for record in records]


def test_waits_are_shares_of_the_time_since_the_last_record() -> None:
    first, second, third = told((0.1, 0.08, 0.0), (0.1, 0.0, 0.08), (0.1, 0.02, 0.0))
    assert 0.4 < first["teachers"] <= 0.8 and second["teachers"] == 0.0
    assert 0.0 < third["teachers"] <= 0.2


def test_the_teachers_wait_while_they_do_not_compute() -> None:
    first, second = told((0.05, 0.0, 0.0), (0.1, 0.0, 0.05))
    assert first["trainer"] == 1.0
    assert 0.5 <= second["trainer"] < 1.0


def test_without_servers_nobody_waits_for_the_trainer() -> None:
    records: list[Record] = []
    diary = Diary(TrainingSpec(report_every=1), LocalTeachers({}), records.append)
    with diary.phase("joint", 1):
        diary.tell(1)
    assert records[0]["waits"] == {"teachers": pytest.approx(0.0)}


def test_what_a_helper_waits_has_a_share_of_its_own() -> None:
    teachers, records = Timed({}), list[Record]()
    diary = Diary(TrainingSpec(report_every=1), teachers, records.append)
    with diary.phase("joint", 1):
        time.sleep(0.1)
        teachers.waited_beside += 0.05
        diary.tell(1)
    waits = records[0]["waits"]
    assert waits["teachers"] == 0.0 and 0.2 < waits["helper"] <= 0.5
