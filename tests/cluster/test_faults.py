"""Runs on a cluster whose parts die: the same network comes out, and nothing is left behind."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator

import pytest
from cluster import PATIENCE, Cluster, Job, wait_for
from network import DISK, Node

MIDDLE = 15
"""A step between the second checkpoint and the third."""
GROWING = {"training.workers": "{min: 1, max: 2}", "training.steps": 300}
"""What makes a run long enough for Ray Train to look for more room."""


@pytest.fixture(autouse=True)
def _fair_weather(nodes: Cluster) -> Iterator[None]:
    nodes.sweep()
    yield
    nodes.store.is_unavailable = nodes.store.is_forbidden = lambda path: False
    for job in nodes.jobs:
        if job.process.poll() is None:
            job.signal(signal.SIGKILL)


def as_undisturbed(
    job: Job,
    undisturbed: Job,
    nodes: Cluster,
    seconds: float = PATIENCE,
    *,
    killed: bool = True,
) -> None:
    """Wait for its end, and compare.

    Args:
        killed: some of its processes were.
    """
    ended = job.end(seconds)
    assert ended.code == 0, ended.err
    assert job.network() == undisturbed.network()
    assert job.steps() == undisturbed.steps()
    assert nodes.left(killed=killed) == []


def odd(name: str) -> dict[str, str]:
    """What gives the preset's first teacher another forward."""
    return {"teachers.0.source": f"odd_teachers:{name}", "teachers.0.arguments": "{labels: 5}"}


def test_an_undisturbed_run_leaves_nothing(nodes: Cluster, undisturbed: Job) -> None:
    assert nodes.left() == []


def test_no_secret_is_in_what_a_run_leaves(nodes: Cluster, undisturbed: Job) -> None:
    secrets = [nodes.env[key].encode() for key in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")]
    folder = undisturbed.node.path(undisturbed.folder)
    left = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    kept = {path: nodes.store.read(path) for path in nodes.store.paths("runs")}
    assert left and kept
    found = [p for p, data in (left | kept).items() if any(each in data for each in secrets)]
    assert found == []


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
def test_one_byte_that_is_another_costs_the_checkpoint_that_it_is_in(
    nodes: Cluster, undisturbed: Job
) -> None:
    """Of a run that Ctrl-C has stopped."""
    job = nodes.start("flipped")
    job.wait_for_step(MIDDLE)
    job.signal(signal.SIGINT)
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err
    assert nodes.left() == []
    paths = nodes.store.paths("runs/flipped")
    *_, newest = (p.removesuffix("files-1.json") for p in paths if p.endswith("files-1.json"))
    shard, *_ = (p for p in paths if p.startswith(newest) and p.endswith(".pt"))
    nodes.store.flip(shard)
    again = nodes.start("flipped", "--resume")
    as_undisturbed(again, undisturbed, nodes)
    name = shard.rpartition("/")[2]
    assert re.search(f"passing over a checkpoint: .*{name} is not what was written", again.log())


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_ends_a_run_that_is_to_start_none_again(
    nodes: Cluster, undisturbed: Job
) -> None:
    job = nodes.start("no-failures", sets={"training.max_failures": 0})
    job.wait_for_step(MIDDLE)
    nodes.processes("RayTrainWorker")[0].kill()
    ended = job.end()
    last = ended.err.splitlines()[-1]
    assert ended.code == 3 and last.startswith("error: the training workers failed: "), ended.err
    assert nodes.left(killed=True) == []
    as_undisturbed(nodes.start("no-failures", "--resume"), undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_server_that_is_killed_is_replaced(nodes: Cluster, undisturbed: Job) -> None:
    job = nodes.start("killed-server")
    job.wait_for_step(MIDDLE)
    nodes.processes("ray::TeacherServer")[0].kill()
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_is_replaced_while_the_teachers_stay(
    nodes: Cluster, undisturbed: Job
) -> None:
    job = nodes.start("killed-worker")
    job.wait_for_step(MIDDLE)
    servers = {process.pid for process in nodes.processes("ray::TeacherServer")}
    nodes.processes("RayTrainWorker")[0].kill()
    job.wait_for_step(MIDDLE + 5)
    assert servers == {process.pid for process in nodes.processes("ray::TeacherServer")}
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


@pytest.mark.exhaustive
def test_a_worker_that_is_late_is_named_when_the_others_give_up(
    nodes: Cluster, undisturbed: Job
) -> None:
    """It is frozen, as by a device that hangs, and removed with all that the run had."""
    job = nodes.start("frozen", sets={"training.timeout": 5, "serving.timeout": 4})
    job.wait_for_step(MIDDLE)
    late = nodes.far
    nodes.on(late, "RayTrainWorker")[0].suspend()
    ended = job.end()
    assert ended.code == 3
    said = rf"longer than training.timeout \(5 s\) for worker \d on {late.address} \("
    assert re.search(said, ended.err), ended.err
    assert nodes.left(killed=True) == []
    again = nodes.start("frozen", "--resume")
    as_undisturbed(again, undisturbed, nodes)


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


@pytest.mark.exhaustive
@pytest.mark.parametrize("which", ["far", "near"])
def test_a_node_that_is_lost_and_comes_back_costs_no_more_than_time(
    nodes: Cluster, undisturbed: Job, which: str
) -> None:
    """A worker's, and the teachers'."""
    job = nodes.start(f"{which}-lost")
    job.wait_for_step(MIDDLE)
    lost: Node = getattr(nodes, which)
    lost.kill()
    nodes.raise_node(lost)
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("answer", ["is_unavailable", "is_forbidden"])
def test_a_storage_that_fails_costs_one_checkpoint(
    nodes: Cluster, undisturbed: Job, answer: str
) -> None:
    """By 503, and by 403 as for a credential that has ended."""
    setattr(nodes.store, answer, lambda path: "checkpoint-000000018/run.json" in path)
    job = nodes.start(answer.removeprefix("is_"))
    as_undisturbed(job, undisturbed, nodes, killed=False)
    assert "no checkpoint at step 18" in job.log()


@pytest.mark.exhaustive
def test_a_disk_that_is_full_costs_checkpoints_alone(nodes: Cluster, undisturbed: Job) -> None:
    """The first one fits, and it is what the run goes on from."""
    kept = {"training.checkpoint.storage": DISK, "training.checkpoint.shared": "true"}
    job = nodes.start("full", sets=kept)
    job.wait_for_step(MIDDLE)
    job.signal(signal.SIGKILL)
    job.end()
    assert "no checkpoint at step 12" in job.log() and "No space left" in job.log()
    assert "no checkpoint at step 6" not in job.log()
    again = nodes.start("full", "--resume", sets=kept)
    again.wait_for_step(7)
    as_undisturbed(again, undisturbed, nodes)
    assert "passing over" not in again.log() and "no checkpoint at step 6" not in again.log()


@pytest.mark.exhaustive
def test_a_server_that_dies_while_it_starts_is_replaced(nodes: Cluster, undisturbed: Job) -> None:
    job = nodes.start("killed-starting")
    wait_for(lambda: nodes.processes("ray::TeacherServer"), "the first server")
    nodes.processes("ray::TeacherServer")[0].kill()
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_checkpoint_is_saved_keeps_one_that_is_whole(
    nodes: Cluster, undisturbed: Job, number: signal.Signals
) -> None:
    name = f"interrupted-{number.name.lower()}"
    job = nodes.start(name)
    told: list[str] = []

    def interrupt(path: str) -> bool:
        if "checkpoint-000000018/generator" in path and not told:
            told.append(path)
            job.signal(number)
        return False

    nodes.store.is_unavailable = interrupt
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err
    assert nodes.left() == []
    as_undisturbed(nodes.start(name, "--resume"), undisturbed, nodes, killed=False)


@pytest.mark.exhaustive
def test_a_teacher_that_answers_late_changes_nothing(nodes: Cluster, undisturbed: Job) -> None:
    job = nodes.start("late", sets=odd("Late"))
    as_undisturbed(job, undisturbed, nodes, killed=False)


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_for_one_worker_ends_the_run_for_all(
    nodes: Cluster, undisturbed: Job
) -> None:
    """By its terms; what was told and kept before is as it would have been, and nothing more is."""
    job = nodes.start("broken", sets=odd("Broken") | {"training.checkpoint.every": 1})
    ended = job.end()
    said = re.search(r"the loss is not finite: ([a-z_]+(, [a-z_]+)*) \(the log", ended.err)
    assert ended.code == 3 and said is not None, ended.err
    told = job.records()
    assert set(said[1].split(", ")) <= told[-1]["losses"].keys()
    assert [r["losses"] for r in told] == [r["losses"] for r in undisturbed.records()[: len(told)]]
    *_, newest = (p for p in nodes.store.paths("runs/broken") if p.endswith("run.json"))
    assert f"checkpoint-{told[-1]['global_step']:09}" in newest
    assert nodes.left() == []


@pytest.mark.exhaustive
def test_a_node_that_is_told_to_leave_makes_the_run_keep_itself(
    nodes: Cluster, undisturbed: Job
) -> None:
    """By what a pod does before it is stopped."""
    job = nodes.start("drained")
    job.wait_for_step(MIDDLE)
    leaving = nodes.far
    env = nodes.env | {"RAY_ADDRESS": nodes.address}
    told = leaving.start(sys.executable, "cluster/leave.py", "60", env=env)
    ended = job.end()
    assert ended.code == 4 and "stopped with a checkpoint at step" in ended.err, ended.err
    told.wait(60)
    leaving.kill()
    nodes.raise_node(leaving)
    as_undisturbed(nodes.start("drained", "--resume"), undisturbed, nodes)


@pytest.fixture
def spare(nodes: Cluster) -> Iterator[Node]:
    """A node that is there again afterwards."""
    node = nodes.nodes[2]
    yield node
    node.kill()
    nodes.raise_node(node)


def workers(nodes: Cluster) -> int:
    return len(nodes.processes("RayTrainWorker"))


@pytest.mark.exhaustive
def test_a_range_of_workers_goes_on_with_fewer_when_a_node_is_lost(
    nodes: Cluster, undisturbed: Job, spare: Node
) -> None:
    job = nodes.start("shrinking", sets={"training.workers": "{min: 1, max: 2}"})
    job.wait_for_step(MIDDLE)
    assert workers(nodes) == 2
    spare.kill()
    job.wait_for_step(MIDDLE + 5)
    assert workers(nodes) == 1
    ended = job.end()
    assert ended.code == 0, ended.err
    assert job.steps() == undisturbed.steps()
    assert job.loss() == pytest.approx(undisturbed.loss(), rel=0.2)
    assert nodes.left(killed=True) == []


@pytest.mark.exhaustive
def test_a_range_of_workers_goes_on_with_more_when_a_node_comes(
    nodes: Cluster, undisturbed: Job, spare: Node
) -> None:
    """Ray Train looks every minute."""
    spare.kill()
    wait_for(lambda: not workers(nodes), "no workers")
    job = nodes.start("growing", sets=GROWING | odd("Late"))
    job.wait_for_step(MIDDLE)
    assert workers(nodes) == 1
    nodes.raise_node(spare)
    wait_for(lambda: workers(nodes) == 2, "a second worker")
    ended = job.end(600)
    assert ended.code == 0, ended.err
    assert job.steps() == list(range(1, len(job.steps()) + 1))
    assert job.loss() < undisturbed.loss()  # which has learned for fewer steps
    assert nodes.left() == []
