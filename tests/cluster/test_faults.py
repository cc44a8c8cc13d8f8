"""Runs on a cluster whose parts die: the same network comes out, and nothing is left behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from cluster import PATIENCE, Cluster, Job, wait_for

MIDDLE = 15
"""A step between the second checkpoint and the third."""
SMALL = 30
"""Megabytes for one checkpoint of a run here, and not for two."""
GROWING = {"training.workers": "{min: 1, max: 2}", "training.steps": 300}
"""What makes a run long enough for Ray Train to look for more room."""


@pytest.fixture(autouse=True)
def _fair_weather(nodes: Cluster) -> Iterator[None]:
    nodes.sweep()
    yield
    nodes.store.is_unavailable = lambda path: False
    for job in nodes.jobs:
        if job.process.poll() is None:
            job.signal(signal.SIGKILL)


def as_undisturbed(job: Job, undisturbed: Job, nodes: Cluster, seconds: float = PATIENCE) -> None:
    """Wait for its end, and compare."""
    ended = job.end(seconds)
    assert ended.code == 0, ended.err
    assert job.network() == undisturbed.network()
    assert job.steps() == undisturbed.steps()
    assert nodes.left(killed=True) == []


def odd(name: str) -> dict[str, str]:
    """What gives the preset's first teacher another forward."""
    return {"teachers.0.source": f"odd_teachers:{name}", "teachers.0.arguments": "{labels: 5}"}


def test_an_undisturbed_run_leaves_nothing(nodes: Cluster, undisturbed: Job) -> None:
    assert nodes.left() == []


def test_a_run_that_is_stopped_and_killed_goes_on_elsewhere_from_what_is_whole(
    nodes: Cluster, undisturbed: Job
) -> None:
    """It stops with a checkpoint; goes on; its driver dies; the newest checkpoint is broken; and
    it goes on from the one before, its driver on another node."""
    job = nodes.start("stopped")
    job.wait_for_step(5)
    job.signal(signal.SIGTERM)
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err
    assert nodes.left() == []
    again = nodes.start("stopped", "--resume")
    again.wait_for_step(MIDDLE)
    again.signal(signal.SIGKILL)
    again.end()
    nodes.left(killed=True)
    *_, newest = (p for p in nodes.store.paths("runs/stopped") if p.endswith("run.json"))
    nodes.store.truncate(newest)
    elsewhere = nodes.start("stopped", "--resume", node=nodes.nodes[1])
    as_undisturbed(elsewhere, undisturbed, nodes)
    assert "passing over a checkpoint" in elsewhere.log()


@pytest.mark.exhaustive
@pytest.mark.parametrize("title", ["ray::TeacherServer", "RayTrainWorker"])
def test_a_process_that_is_killed_is_replaced(nodes: Cluster, undisturbed: Job, title: str) -> None:
    job = nodes.start(f"killed-{title[-6:]}")
    job.wait_for_step(MIDDLE)
    nodes.processes(title)[0].kill()
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dies", ["DiesForward", "DiesBack"])
def test_a_server_that_dies_at_its_work_is_asked_again(
    nodes: Cluster, undisturbed: Job, dies: str
) -> None:
    job = nodes.start(dies.lower(), sets=odd(dies))
    as_undisturbed(job, undisturbed, nodes)
    died = [node.path("/tmp/died") for node in nodes.nodes]
    assert any(place.exists() for place in died)
    for place in died:
        place.unlink(missing_ok=True)


def test_a_worker_that_is_late_is_named_when_the_others_give_up(nodes: Cluster) -> None:
    """It is frozen, as by a device that hangs, and removed with all that the run had."""
    job = nodes.start("frozen", sets={"training.timeout": 5})
    job.wait_for_step(MIDDLE)
    late = nodes.processes("RayTrainWorker")[-1]
    late.suspend()
    ended = job.end()
    assert ended.code == 3 and "longer than training.timeout (5 s) for worker" in ended.err
    assert nodes.left() == []


@pytest.mark.exhaustive
def test_a_worker_that_dies_while_it_saves_leaves_the_checkpoint_before(
    nodes: Cluster, undisturbed: Job
) -> None:
    killed: list[str] = []

    def kill(path: str) -> bool:
        if "checkpoint-000000018/generator" in path and not killed:
            killed.append(path)
            nodes.processes("RayTrainWorker")[-1].kill()
        return False

    job = nodes.start("killed-saving")
    nodes.store.is_unavailable = kill
    wait_for(lambda: killed, "the third checkpoint")
    as_undisturbed(job, undisturbed, nodes)


def test_a_node_that_is_lost_and_comes_back_costs_no_more_than_time(
    nodes: Cluster, undisturbed: Job
) -> None:
    job, lost = nodes.start("node-lost"), nodes.nodes[2]
    job.wait_for_step(MIDDLE)
    lost.kill()
    nodes.raise_node(lost)
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_storage_that_fails_costs_one_checkpoint(nodes: Cluster, undisturbed: Job) -> None:
    nodes.store.is_unavailable = lambda path: "checkpoint-000000018/run.json" in path
    job = nodes.start("unavailable")
    as_undisturbed(job, undisturbed, nodes)
    assert "no checkpoint at step 18" in job.log()


@pytest.mark.exhaustive
def test_a_disk_that_is_full_costs_checkpoints_alone(nodes: Cluster, undisturbed: Job) -> None:
    """The first one fits."""
    for node in nodes.nodes:
        node.add_disk("/tmp/small", megabytes=SMALL)
    kept = {"training.checkpoint.storage": "/tmp/small", "training.checkpoint.shared": "true"}
    job = nodes.start("full", sets=kept)
    as_undisturbed(job, undisturbed, nodes)
    assert "no checkpoint at step 12" in job.log() and "No space left" in job.log()
    assert "no checkpoint at step 6" not in job.log()


@pytest.mark.exhaustive
def test_a_server_that_dies_while_it_starts_is_replaced(nodes: Cluster, undisturbed: Job) -> None:
    job = nodes.start("killed-starting")
    wait_for(lambda: nodes.processes("ray::TeacherServer"), "the first server")
    nodes.processes("ray::TeacherServer")[0].kill()
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_ctrl_c_while_a_checkpoint_is_saved_keeps_one_that_is_whole(
    nodes: Cluster, undisturbed: Job
) -> None:
    job = nodes.start("interrupted")
    told: list[str] = []

    def interrupt(path: str) -> bool:
        if "checkpoint-000000018/generator" in path and not told:
            told.append(path)
            job.signal(signal.SIGINT)
        return False

    nodes.store.is_unavailable = interrupt
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err
    assert nodes.left() == []
    as_undisturbed(nodes.start("interrupted", "--resume"), undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_teacher_that_answers_late_changes_nothing(nodes: Cluster, undisturbed: Job) -> None:
    job = nodes.start("late", sets=odd("Late"))
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_for_one_worker_ends_the_run_for_all(nodes: Cluster) -> None:
    job = nodes.start("broken", sets=odd("Broken"))
    ended = job.end()
    assert ended.code == 3 and "not finite" in ended.err.lower(), ended.err
    assert nodes.left() == []


@pytest.mark.exhaustive
def test_a_node_that_is_told_to_leave_makes_the_run_keep_itself(
    nodes: Cluster, undisturbed: Job
) -> None:
    """By what a pod does before it is stopped."""
    job, leaving = nodes.start("drained"), nodes.nodes[2]
    job.wait_for_step(MIDDLE)
    env = nodes.env | {"RAY_ADDRESS": nodes.address}
    told = leaving.start(sys.executable, "cluster/leave.py", "60", env=env)
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err, ended.err
    told.wait(60)
    leaving.kill()
    nodes.raise_node(leaving)
    as_undisturbed(nodes.start("drained", "--resume"), undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_range_of_workers_goes_on_with_fewer_when_a_node_is_lost(
    nodes: Cluster, undisturbed: Job
) -> None:
    job = nodes.start("elastic", sets={"training.workers": "{min: 1, max: 2}"})
    job.wait_for_step(MIDDLE)
    lost = nodes.nodes[2]
    lost.kill()
    ended = job.end()
    nodes.raise_node(lost)
    assert ended.code == 0, ended.err
    assert job.steps() == undisturbed.steps()
    assert nodes.left(killed=True) == []


@pytest.mark.exhaustive
def test_a_range_of_workers_goes_on_with_more_when_a_node_comes(nodes: Cluster) -> None:
    """Ray Train looks every minute."""
    coming = nodes.nodes[2]
    coming.kill()
    wait_for(lambda: not nodes.processes("RayTrainWorker"), "no workers")
    job = nodes.start("growing", sets=GROWING | odd("Late"))
    job.wait_for_step(MIDDLE)
    assert len(nodes.processes("RayTrainWorker")) == 1
    nodes.raise_node(coming)
    wait_for(lambda: len(nodes.processes("RayTrainWorker")) == 2, "a second worker")
    ended = job.end(600)
    assert ended.code == 0, ended.err
    assert job.steps() == list(range(1, len(job.steps()) + 1))
    assert nodes.left() == []
