"""A whole run in a Ray Train job, its teachers in a pool beside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from dfka_dist import launch, watching
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import Interrupted, RunFailed, TeacherUnavailable
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.shelf import FolderShelf
from distributed.conftest import MakePool, alive, left_since
from distributed.custom_shelf import OneSided

Tiny = Callable[..., RunConfig]
SOON = 60.0
"""Seconds; a collective would wait for 900."""


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
def launched_as(teachers: ServedTeachers, process_group: None) -> Callable[..., Launched]:
    def run(config: RunConfig, shelf: FolderShelf | None = None) -> Launched:
        records: list[Record] = []
        before = alive()
        outcome = launch.amalgamate(config, teachers, records.append, shelf=shelf)
        return Launched(config, outcome, records, left_since(before))

    return run


@pytest.fixture(scope="module")
def one_worker(tiny: Tiny, launched_as: Callable[..., Launched]) -> Launched:
    return launched_as(tiny())


@pytest.fixture(scope="module")
def two_workers(tiny: Tiny, launched_as: Callable[..., Launched], kept: FolderShelf) -> Launched:
    every = {"checkpoint": {"every": 2}}
    return launched_as(tiny(workers=2, zero_stage=3, precision="bf16", **every), kept)


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


@pytest.fixture(scope="module")
def by_local(
    tiny: Tiny,
    two: list[TeacherSpec],
    load_teacher: Callable[[TeacherSpec], Teacher],
    process_group: None,
) -> Tensor:
    """The network that teachers in this process make."""
    teachers = LocalTeachers({spec.name: load_teacher(spec) for spec in two})
    return flat(Amalgamator(tiny(), teachers, [].append).run().state)


def test_served_teachers_make_the_network_that_local_ones_make(
    one_worker: Launched, by_local: Tensor
) -> None:
    torch.testing.assert_close(flat(one_worker.outcome.state), by_local, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("serving", "training", "least", "most"),
    [
        pytest.param({"shards": 2}, {}, 0.0, 1e-5, id="shards"),
        pytest.param({"replicas": 2}, {}, 0.0, 1e-5, id="replicas"),
        pytest.param({}, {"micro_batch": 3}, 0.0, 1e-5, id="micro_batch"),
        pytest.param({"wire": "bf16"}, {}, 1e-6, 2e-3, id="bf16"),
    ],
)
def test_teachers_served_in_any_way_make_the_network_that_local_ones_make(
    two: list[TeacherSpec],
    make_pool: MakePool,
    tiny: Tiny,
    by_local: Tensor,
    serving: dict[str, Any],
    training: dict[str, Any],
    least: float,
    most: float,
) -> None:
    """By the length of the difference against that of the network; a wire of 16 bits rounds."""
    with make_pool(two, **serving) as pool:
        state = Amalgamator(tiny(**training), pool.teachers, [].append).run().state
    assert least <= (flat(state) - by_local).norm() / by_local.norm() <= most


@pytest.fixture
def halfway(two_workers: Launched, kept: FolderShelf, tmp_path: Path) -> FolderShelf:
    """The checkpoints of `two_workers` in the middle of their first phase."""
    shutil.copytree(str(kept), tmp_path / "kept")
    shelf = FolderShelf(str(tmp_path / "kept"), keep=99)
    for later in shelf.steps()[2:]:
        shutil.rmtree(tmp_path / "kept" / f"checkpoint-{later:09}")
    return shelf


@pytest.mark.exhaustive  # test_resizing and test_handover show its parts
def test_one_worker_goes_on_from_a_checkpoint_of_two(
    two_workers: Launched, halfway: FolderShelf, tiny: Tiny, teachers: ServedTeachers
) -> None:
    """Batches, weights and memory are the same; BatchNorm sees other parts of a batch."""
    told: list[Record] = []
    config = tiny(workers=1, zero_stage=3, precision="bf16")
    outcome = launch.amalgamate(config, teachers, told.append, shelf=halfway)
    assert [record["phase"] for record in told] == [r["phase"] for r in two_workers.records]
    ends, expected = told[-1]["losses"], two_workers.records[-1]["losses"]
    assert ends["distill"] == pytest.approx(expected["distill"], rel=0.01)
    difference = flat(outcome.state) - flat(two_workers.outcome.state)
    assert difference.norm() < 0.01 * flat(outcome.state).norm()


@pytest.mark.exhaustive  # tests/cluster shows it too
def test_two_workers_go_on_from_a_checkpoint_bit_for_bit(
    two_workers: Launched, halfway: FolderShelf, teachers: ServedTeachers
) -> None:
    shelf = halfway
    outcome = launch.amalgamate(two_workers.config, teachers, [].append, shelf=shelf)
    expected = two_workers.outcome.state
    assert all(outcome.state[key].equal(value) for key, value in expected.items())


def test_checkpoints_are_made_every_so_many_steps_of_all_phases(kept: FolderShelf) -> None:
    assert kept.steps() == [2, 4, 6, 8, 10]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> FolderShelf:
    """All checkpoints of `two_workers`."""
    return FolderShelf(str(tmp_path_factory.mktemp("kept")), keep=99)


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in state.values()])


@pytest.mark.exhaustive  # as tests/cluster do, with more around it
def test_two_workers_that_are_told_to_stop_make_a_checkpoint_and_end(
    tiny: Tiny, teachers: ServedTeachers, process_group: None, tmp_path: Path
) -> None:
    before = alive()
    shelf, told = FolderShelf(str(tmp_path), keep=1), list[Record]()
    config = tiny(workers=2, steps=100_000, rehearsal_steps=0)
    with pytest.raises(Interrupted, match="with a checkpoint at step ") as ended:
        launch.amalgamate(config, teachers, told.append, shelf=shelf, stopping=lambda: bool(told))
    (step,) = shelf.steps()
    assert f" {step};" in str(ended.value) and shelf.newest() is not None
    assert left_since(before) == set()


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


@pytest.mark.exhaustive
def test_a_range_of_workers_is_as_many_as_fit_beside_the_teachers(
    tiny: Tiny, teachers: ServedTeachers, tmp_path: Path
) -> None:
    """The cluster has CPUs for two, if its teachers had none."""
    kept = {"worker_cpus": 4.0, "start_timeout": 150.0, "checkpoint": {"every": 2}}
    config = tiny(workers={"min": 1, "max": 2}, **kept)
    shelf = FolderShelf(str(tmp_path), keep=1)
    launch.amalgamate(config, teachers, [].append, shelf=shelf)
    told = shelf.told()
    assert told is not None and told["workers"] == 1


@pytest.mark.exhaustive
def test_a_run_that_is_dropped_in_the_middle_leaves_no_placement_group(
    tiny: Tiny, teachers: ServedTeachers
) -> None:
    """Ray Train's own cleaner asks the dashboard, which is not there."""

    def drop(record: Record) -> None:
        raise KeyboardInterrupt

    before = alive()
    with pytest.raises(KeyboardInterrupt):
        launch.amalgamate(tiny(steps=100_000, rehearsal_steps=0), teachers, drop)
    assert left_since(before) == set()


RANGE = pytest.param({"min": 1, "max": 2}, "1 to 2", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(("workers", "wanted"), [(2, "2"), RANGE])
def test_workers_without_room_are_told_of_and_end_the_run(
    tiny: Tiny,
    teachers: ServedTeachers,
    monkeypatch: pytest.MonkeyPatch,
    workers: int | dict[str, int],
    wanted: str,
) -> None:
    """Ray Train would try for ever; and nobody else removes the group that it waits for."""
    monkeypatch.setattr(watching, "REMINDING", 2.0)
    before, warnings = alive(), list[str]()
    config = tiny(workers=workers, worker_cpus=64.0, start_timeout=5.0)
    said = f"no worker for .* wanted are {wanted} of 64 CPU; free now: .*training.start_timeout"
    with pytest.raises(RunFailed, match=said):
        launch.amalgamate(config, teachers, [].append, on_warning=warnings.append)
    assert warnings and all(each.startswith("no worker for ") for each in warnings)
    assert left_since(before) == set()


@pytest.mark.exhaustive
def test_what_a_worker_meets_that_another_has_left_behind_is_in_the_log(
    tiny: Tiny, teachers: ServedTeachers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = alive()
    with caplog.at_level("INFO", "dfka_dist"), pytest.raises(RunFailed, match="cannot read"):
        launch.amalgamate(
            tiny(workers=2), teachers, [].append, shelf=OneSided(str(tmp_path), keep=1)
        )
    story = "a worker failed when the run was over: worker 0: Traceback"
    assert story in caplog.text
    assert left_since(before) == set()
