"""A whole run in a Ray Train job, its teachers in a pool beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from dfka_dist import launch
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import TeacherUnavailable
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from distributed.conftest import MakePool, alive, left_since

Tiny = Callable[..., RunConfig]
SOON = 30.0
"""Seconds; a collective would wait for 600."""


@dataclass(frozen=True)
class Launched:
    config: RunConfig
    outcome: Outcome
    records: list[Record]
    left: set[str]
    """Of what was started for the run."""


@pytest.fixture(scope="module")
def two(
    make_teacher: Callable[..., TeacherSpec], specs: dict[str, TeacherSpec]
) -> list[TeacherSpec]:
    return [specs["first"], make_teacher("third", "de")]


@pytest.fixture(scope="module")
def tiny(two: list[TeacherSpec], make_config: Callable[..., RunConfig]) -> Tiny:
    """A factory of runs of six steps: `tiny(workers=2)`."""
    short = {
        "steps": 6,
        "rehearsal_steps": 2,
        "fine_tune_steps": 2,
        "batch_size": 8,
        "probe_images": 64,
        "memory_megabytes": 1,
    }

    def make(**training: Any) -> RunConfig:
        return make_config(
            two,
            target={"arguments": {"widths": [4, 6, 8]}},
            generator={"latent": 6},
            training=short | {"report_every": 2, "threads": 1} | training,
        )

    return make


@pytest.fixture(scope="module")
def teachers(two: list[TeacherSpec], make_pool: MakePool) -> Iterator[ServedTeachers]:
    with make_pool(two) as pool:
        yield pool.teachers


@pytest.fixture(scope="module")
def launched_as(teachers: ServedTeachers, process_group: None) -> Callable[[RunConfig], Launched]:
    def run(config: RunConfig) -> Launched:
        records: list[Record] = []
        before = alive()
        outcome = launch.amalgamate(config, teachers, records.append)
        return Launched(config, outcome, records, left_since(before))

    return run


@pytest.fixture(scope="module")
def one_worker(tiny: Tiny, launched_as: Callable[[RunConfig], Launched]) -> Launched:
    return launched_as(tiny())


@pytest.fixture(scope="module")
def two_workers(tiny: Tiny, launched_as: Callable[[RunConfig], Launched]) -> Launched:
    return launched_as(tiny(workers=2, zero_stage=3, precision="bf16"))


@pytest.fixture(scope="module", params=["one_worker", "two_workers"])
def launched(request: pytest.FixtureRequest) -> Launched:
    found: Launched = request.getfixturevalue(request.param)
    return found


def test_a_run_ends_with_a_network_of_finite_numbers(launched: Launched) -> None:
    assert flat(launched.outcome.state).isfinite().all()


def test_records_arrive_one_by_one_and_each_once(launched: Launched) -> None:
    told = [(record["phase"], record["step"]) for record in launched.records]
    joint = [("joint", 2), ("joint", 4), ("joint", 6)]
    assert told == [*joint, ("rehearsal", 2), ("fine_tune", 2)]


def test_nothing_that_was_started_for_a_run_is_left_in_the_cluster(launched: Launched) -> None:
    assert launched.left == set()


def test_served_teachers_make_the_network_that_local_ones_make(
    one_worker: Launched, load_teacher: Callable[[TeacherSpec], Teacher]
) -> None:
    teachers = LocalTeachers({s.name: load_teacher(s) for s in one_worker.config.teachers})
    local = Amalgamator(one_worker.config, teachers, [].append).run()
    expected = flat(local.state)
    torch.testing.assert_close(flat(one_worker.outcome.state), expected, rtol=0, atol=1e-4)


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in state.values()])


def test_two_workers_that_lose_a_teacher_end_soon_and_say_which(
    two: list[TeacherSpec], tiny: Tiny, make_pool: MakePool, process_group: None
) -> None:
    """Its only server is killed for good between two steps; neither worker waits for the other."""
    before = alive()
    ended: list[float] = []
    with make_pool(two, restarts=0) as pool:

        def kill(record: Record) -> None:
            if not ended and record["step"] >= 10:
                ended.append(time.monotonic())
                ray.kill(pool.servers["third"][0], no_restart=True)

        config = tiny(workers=2, steps=100_000, rehearsal_steps=0)
        with pytest.raises(TeacherUnavailable, match="teacher third has no server left"):
            launch.amalgamate(config, pool.teachers, kill)
        assert time.monotonic() - ended[0] < SOON
    assert left_since(before) == set()
