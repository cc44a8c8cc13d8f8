"""One run to which one thing after another happens; `test_faults`, `test_links` have each alone."""

from __future__ import annotations

import time

from cluster import Cluster, Job
from test_faults import MIDDLE, _fair_weather, as_undisturbed

__all__ = ["_fair_weather"]

LATER = 20
"""A step between the third checkpoint and the fourth."""


def test_a_run_that_loses_one_thing_after_another_makes_the_same_network(
    nodes: Cluster, undisturbed: Job
) -> None:
    """A server, a checkpoint that the storage refuses, a worker, the wire of a node for 5 s, and
    the node of the teachers and of a worker."""
    nodes.store.is_unavailable = lambda path: "checkpoint-000000006/run.json" in path
    job = nodes.start("unlucky")
    job.wait_for_step(3)
    nodes.processes("ray::TeacherServer")[0].kill()
    job.wait_for_step(MIDDLE)
    servers = {process.pid for process in nodes.processes("ray::TeacherServer")}
    nodes.processes("RayTrainWorker")[0].kill()
    job.wait_for_step(MIDDLE + 2)
    assert servers == {process.pid for process in nodes.processes("ray::TeacherServer")}
    nodes.nodes[2].cut()
    time.sleep(5)
    nodes.nodes[2].join()
    job.wait_for_step(LATER)
    lost = nodes.near
    lost.kill()
    nodes.raise_node(lost)
    as_undisturbed(job, undisturbed, nodes)
    assert "no checkpoint at step 6" in job.log()
