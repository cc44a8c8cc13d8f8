"""One Ray cluster and one process group for all tests here, and a guard for what runs in them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private import state as ray_state
from safetensors.torch import load_file, save_file
from torch import nn

from dfka_dist import clusters
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.sources import read_all_weights
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.teachers.placement import PlacementPlan, plan
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.engines import Engine
from distributed.custom_teachers import with_moods
from distributed.recipes import folder, run, strangers

__all__ = ["folder", "run", "strangers"]

Nodes = list[NodeResources]
MakePool = Callable[..., TeacherPool]
RAYS_OWN = ("_AutoscalingCoordinatorActor",)
"""Actors that Ray Train starts once for a whole cluster."""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Nodes]:
    """A private Ray cluster, which can import `custom_teachers`; its CPUs are shares, not cores."""
    room = PlacementPlan(({"CPU": 8.0},), "PACK", seats=(), server={}, workers=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        with clusters.connected(None, room) as nodes:
            yield nodes


@pytest.fixture(scope="package")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone, in which DeepSpeed has compiled what it compiles once.

    Whatever starts two workers asks for this first: two that compile at once wait for each other.
    """
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it; Ray Train sets it
        torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
        Engine(nn.Linear(1, 1), micro_batch=1, zero_stage=1, precision="fp32", rate=0.1).destroy()
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="package")
def make_pool(cluster: Nodes, make_config: Callable[..., RunConfig]) -> MakePool:
    """A factory of pools, not yet entered: `make_pool(specs, replicas=2, ...)` as under serving."""

    def make(specs: Sequence[TeacherSpec], **serving: Any) -> TeacherPool:
        config = make_config(specs, serving={"cpus": 0.1, **serving})
        weights = read_all_weights(config.teachers)
        name = uuid.uuid4().hex[:8]
        return TeacherPool(config.teachers, weights, plan(config, cluster), config.serving, name)

    return make


@pytest.fixture(scope="package")
def specs(make_teacher: Callable[..., TeacherSpec]) -> dict[str, TeacherSpec]:
    """`first` and `second`, which differ in all they may differ in, and `exact` in float64."""
    second = {"task": "single_label", "widths": (5, 6, 7), "channels": 3, "size": 12}
    made = [
        with_moods(make_teacher("first", "abc")),
        with_moods(make_teacher("second", "abc", **second, std=(0.2, 0.3, 0.4), mean=(0.5,))),
        _in_float64(make_teacher("exact", "abc", widths=(2, 3, 4), size=8)),
    ]
    return {spec.name: spec for spec in made}


@pytest.fixture(scope="package")
def pool(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    """A server for each of `specs`, with little memory; no test kills it."""
    with make_pool(list(specs.values()), cache_megabytes=1) as pool:
        yield pool


@pytest.fixture
def served(pool: TeacherPool) -> ServedTeachers:
    return pool.teachers


@pytest.fixture(scope="package")
def local(
    specs: dict[str, TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> LocalTeachers:
    """The same teachers in this process."""
    return LocalTeachers({name: load_teacher(spec) for name, spec in specs.items()})


@pytest.fixture(autouse=True)
def _cluster_is_left_as_it_was() -> Iterator[None]:
    """Fail a test that leaves an actor or a placement group behind."""
    before = alive()
    yield
    left = left_since(before)
    assert not left, f"the test left {', '.join(sorted(left))}"


def _in_float64(spec: TeacherSpec) -> TeacherSpec:
    assert spec.weights is not None
    state = load_file(spec.weights)
    save_file(
        {k: v.double() if v.is_floating_point() else v for k, v in state.items()}, spec.weights
    )
    return spec


def left_since(before: set[str]) -> set[str]:
    """What lives in the cluster and did not before; what is on its way out gets time to go."""
    patience = time.monotonic() + 10
    while (left := alive() - before) and time.monotonic() < patience:
        time.sleep(0.05)
    return left


def alive() -> set[str]:
    """Actors and placement groups of the cluster that this process is connected to."""
    if not ray.is_initialized():
        return set()
    # Ray's public list of actors needs the dashboard.
    actors = ray_state.actors().values()
    groups = ray.util.placement_group_table().values()
    return {
        f"actor {actor['ActorClassName']} {actor['ActorID']}"
        for actor in actors
        if actor["State"] != "DEAD" and actor["ActorClassName"] not in RAYS_OWN
    } | {
        f"placement group {group['name']} {group['placement_group_id']}"
        for group in groups
        if group["state"] != "REMOVED"
    }
