"""What is left of a controller whose whole surroundings were killed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray
from ray.util import placement_group, placement_group_table

from dfka_dist import clusters, presence
from distributed.conftest import Nodes


class TrainController:
    """Has a placement group, as Ray Train's has."""

    def group(self) -> str:
        """Its id."""
        group = placement_group([{"CPU": 0.1}])
        ray.get(group.ready())
        return str(group.id.hex())


@pytest.fixture
def controllers(cluster: Nodes) -> Iterator[list[ray.actor.ActorHandle]]:
    made = [ray.remote(TrainController).options(num_cpus=0).remote() for _ in range(2)]
    yield made
    for controller in made:
        ray.kill(controller)
    presence.clear_orphans(patience=10)


def state(group: str) -> str:
    return str(placement_group_table()[group]["state"])


def test_room_that_dead_controllers_hold_is_let_go_and_no_other(
    controllers: list[ray.actor.ActorHandle],
) -> None:
    lost, living = ray.get([controller.group.remote() for controller in controllers])
    ray.kill(controllers[0])
    presence.clear_orphans(patience=2)  # which the other one lasts out
    assert (state(lost), state(living)) == ("REMOVED", "CREATED")


def test_what_a_private_cluster_has_started_is_known(cluster: Nodes) -> None:
    """So that none of it stays, which a process may that hangs in its own exit."""
    actor = ray.remote(Somebody).options(num_cpus=0).remote()
    pid = ray.get(actor.pid.remote())
    started = clusters._started()
    assert pid in [process.pid for process in started]
    assert os.getpid() not in [process.pid for process in started]
    ray.kill(actor)


class Somebody:
    def pid(self) -> int:
        return os.getpid()
