"""Runs on a cluster whose wires are bad: the same network comes out, and nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster import Cluster, Job, wait_for
from network import Node
from test_faults import MIDDLE, _fair_weather, as_undisturbed

__all__ = ["_fair_weather"]

FEW = {
    "training.steps": 6,
    "training.rehearsal_steps": 2,
    "training.fine_tune_steps": 1,
    "training.candidates": 1,
    "training.checkpoint.every": 3,
}
"""What makes a run that few megabytes are enough for."""


@pytest.fixture
def far(nodes: Cluster) -> Iterator[Node]:
    """A node whose wire is good again afterwards."""
    node = nodes.nodes[2]
    yield node
    node.kill()
    node.mend()
    nodes.raise_node(node)


@pytest.mark.exhaustive
def test_a_wire_that_is_out_for_a_moment_costs_no_more_than_time(
    nodes: Cluster, undisturbed: Job
) -> None:
    job = nodes.start("cut")
    job.wait_for_step(MIDDLE)
    nodes.nodes[2].cut()
    time.sleep(5)
    nodes.nodes[2].join()
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_node_that_is_cut_off_for_long_is_lost_and_may_come_back(
    nodes: Cluster, undisturbed: Job, far: Node
) -> None:
    """What still runs there when the wire is in again ends by itself, and spoils nothing."""
    job = nodes.start("cut-off")
    job.wait_for_step(MIDDLE)
    far.cut()
    time.sleep(20)
    far.join()
    wait_for(lambda: not far.processes(), "everything to end on a node that was given up", 120)
    nodes.raise_node(far)
    as_undisturbed(job, undisturbed, nodes)


@pytest.mark.exhaustive
def test_a_slow_wire_that_loses_frames_costs_no_more_than_time(nodes: Cluster, far: Node) -> None:
    """Such a wire carries less than 100 KB a second: few steps, beside as few without it."""
    plain = nodes.start("strong", sets=FEW)
    assert plain.end().code == 0
    far.kill()
    nodes.left(killed=True)
    far.weaken(milliseconds=100, loss=0.01)
    nodes.raise_node(far)
    as_undisturbed(nodes.start("weak", sets=FEW), plain, nodes, seconds=900)
