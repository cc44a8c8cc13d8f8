"""Where the servers go: a pure function of the configuration, the teachers and the nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.teachers.cutting import cut_teachers
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.nodes import NodeResources, Resources

COMING = "a node to come"
Free = list[tuple[str, Resources]]
"""What each node has left."""


@dataclass(frozen=True)
class Seat:
    """One server's place: a shard of a replica of a teacher in a bundle of the placement group."""

    teacher: str
    replica: int
    shard: int
    stages: range
    """Blocks that it holds, counted from 0; the head is the last of the teacher's stages."""
    bundle: int
    node: str
    """Where first fit puts it; Ray may choose another node of the same kind."""


@dataclass(frozen=True)
class PlacementPlan:
    """What is asked of Ray, and how it could be met."""

    bundles: tuple[Resources, ...]
    """One for each server, or for all shards of a replica where one node can hold them."""
    strategy: str
    """Ray's: PACK or SPREAD."""
    seats: tuple[Seat, ...]
    server: Resources
    """What each server takes of its bundle."""
    workers: tuple[Resources, ...]
    """One for each worker of the trainer, as many as there must be."""
    most_workers: int = 0
    """As there may be."""
    server_labels: Mapping[str, str] = field(default_factory=dict)
    """That nodes of servers have."""

    @property
    def cpus(self) -> float:
        """All that is asked for."""
        return sum(resources["CPU"] for resources in (*self.bundles, *self.workers))

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        cut = {seat.teacher for seat in self.seats if seat.shard}
        servers = [
            f"  server of {seat.teacher}, replica {seat.replica}"
            f"{f', {_held(seat)}' if seat.teacher in cut else ''}: "
            f"{_shown(self.server)} on {seat.node}"
            for seat in self.seats
        ]
        trainers = [
            f"  worker {rank}: {_shown(resources)}" for rank, resources in enumerate(self.workers)
        ]
        if self.most_workers > len(self.workers):
            trainers.append(f"  up to {self.most_workers} workers where there is room")
        return [f"placement ({self.strategy}):", *servers, *trainers]


def plan(
    config: RunConfig,
    nodes: Sequence[NodeResources],
    descriptions: Mapping[str, TeacherDescription] | None = None,
) -> PlacementPlan:
    """Give every shard of every replica of every teacher a seat; check that servers and workers
    fit.

    Args:
        descriptions: of the loaded teachers; without them no memory is checked.

    Raises:
        InputError: there is not enough of something, and the cluster does not grow.
    """
    serving, training = config.serving, config.training
    cuts = cut_teachers(config, nodes, descriptions)
    server = _resources(serving.cpus, serving.gpus)
    worker = _resources(training.worker_cpus, training.worker_gpus)
    free = [(node.name, _resources(node.cpus, node.gpus)) for node in nodes]
    seating = _labelled(config, "serving", nodes, free)
    working = _labelled(config, "training", nodes, free)
    servers = serving.replicas * sum(map(len, cuts.values()))
    _check_totals(config, server, worker, servers, free)
    bundles: list[Resources] = []
    seats: list[Seat] = []
    for teacher, shards in cuts.items():
        for replica in range(serving.replicas):
            for own, held, node in _placed(config, teacher, shards, server, seating):
                for shard in held:
                    stages = shards[shard]
                    seats.append(Seat(teacher, replica, shard, stages, len(bundles), node))
                bundles.append(own)
    for rank in range(min(training.worker_range)):
        if _fit(worker, working, spread=False) is None and not serving.wait_for_nodes:
            raise InputError(
                "training.workers",
                f"no node has {_shown(worker)} left for worker {rank}",
                "fewer workers",
            )
    return PlacementPlan(
        bundles=tuple(bundles),
        strategy=serving.strategy.upper(),
        seats=tuple(seats),
        server=server,
        workers=tuple(worker for _ in range(min(training.worker_range))),
        most_workers=max(training.worker_range),
        server_labels=serving.node_labels,
    )


def _labelled(
    config: RunConfig,
    section: Literal["serving", "training"],
    nodes: Sequence[NodeResources],
    free: Free,
) -> Free:
    """What is free on the nodes that have the labels that a section asks for."""
    wanted = getattr(config, section).node_labels.items()
    found = [own for node, own in zip(nodes, free, strict=True) if wanted <= node.labels.items()]
    if not found and wanted and not config.serving.wait_for_nodes:
        shown = ", ".join(f"{key}={value}" for key, value in wanted)
        there = {f"{k}={v}" for node in nodes for k, v in node.labels.items() if "/" not in k}
        what = f"no node has {shown}; there are {', '.join(sorted(there)) or 'no labels'}"
        raise InputError(f"{section}.node_labels", what, "labels that nodes were started with")
    return found


def _placed(
    config: RunConfig, teacher: str, shards: Sequence[range], server: Resources, free: Free
) -> list[tuple[Resources, range, str]]:
    """The bundles of one replica, each with the shards that are in it and a node: one bundle where
    a node has room for all, for a bundle never spans two; else one for each shard."""
    spread = config.serving.strategy == "spread"
    together = _times(server, len(shards))
    node = _fit(together, free, spread=spread)
    if node is not None:
        return [(together, range(len(shards)), node)]
    found = []
    for shard in range(len(shards)):
        node = _fit(server, free, spread=spread and not shard)
        if node is None and not config.serving.wait_for_nodes:
            raise InputError(
                "serving",
                f"no node has {_shown(server)} left for {teacher}",
                "smaller or fewer servers",
            )
        found.append((server, range(shard, shard + 1), node or COMING))
    return found


def _check_totals(
    config: RunConfig, server: Resources, worker: Resources, servers: int, free: Free
) -> None:
    if config.serving.wait_for_nodes:
        return
    for kind, keys in (
        ("GPU", ("serving.gpus", "training.worker_gpus")),
        ("CPU", ("serving.cpus", "training.worker_cpus")),
    ):
        serving = server.get(kind, 0) * servers
        training = worker.get(kind, 0) * min(config.training.worker_range)
        there = sum(resources.get(kind, 0) for _, resources in free)
        if serving + training > there + 1e-9:
            raise InputError(
                keys[0] if serving >= training else keys[1],
                f"servers and workers ask for {serving + training:g} {kind}s where there are "
                f"{there:g}",
                "ask for less, add nodes, or set serving.wait_for_nodes where the cluster grows",
            )


def _fit(wanted: Resources, free: Free, *, spread: bool) -> str | None:
    """Take the resources from the first node that has them; the emptiest first when spreading."""
    for name, left in sorted(free, key=lambda node: -node[1]["CPU"]) if spread else free:
        if all(left.get(kind, 0) >= amount - 1e-9 for kind, amount in wanted.items()):
            for kind, amount in wanted.items():
                left[kind] -= amount
            return name
    return None


def _times(server: Resources, count: int) -> Resources:
    """Of several servers in one bundle; what does not fit into one GPU takes whole ones, each with
    as many servers as fit it."""
    each = server.get("GPU", 0.0)
    gpus = each * count
    if gpus > 1:
        gpus = math.ceil(count / math.floor(1 / each + 1e-9))
    return _resources(server["CPU"] * count, gpus)


def _resources(cpus: float, gpus: float) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _shown(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())


def _held(seat: Seat) -> str:
    first, last = seat.stages.start + 1, seat.stages.stop
    return (
        f"shard {seat.shard} (part {first})"
        if first == last
        else (f"shard {seat.shard} (parts {first} to {last})")
    )
