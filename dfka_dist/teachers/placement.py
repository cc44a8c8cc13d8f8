"""Where the servers go: a pure function of the configuration, the teachers and the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.teachers.cutting import cut_teachers, room_of
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.nodes import NodeResources, Resources
from dfka_dist.teachers.seating import NodeRoom, Spot, amounts, apart, together

COMING = "a node to come"
Free = list[NodeRoom]


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
    """Where it fits; Ray may choose another node of the same kind."""
    device: int | None = None
    """Which of the node's GPUs, where it takes one and the node is there."""


@dataclass(frozen=True)
class PlacementPlan:
    """What is asked of Ray, and how it could be met."""

    bundles: tuple[Resources, ...]
    """One for each server, or for those shards of a replica that one node can hold together."""
    strategy: str
    """Ray's: PACK or SPREAD; PACK where shards of a replica wait for nodes to come, so that they
    come near each other."""
    seats: tuple[Seat, ...]
    server: Resources
    """What each server takes of its bundle."""
    workers: tuple[Resources, ...]
    """One for each worker of the trainer, as many as there must be."""
    most_workers: int = 0
    """As there may be."""
    server_labels: Mapping[str, str] = field(default_factory=dict)
    """That nodes of servers have."""
    is_checked: bool = True
    """Whether the memory of GPUs was known, where servers take any."""

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
    server = amounts(serving.cpus, serving.gpus)
    worker = amounts(training.worker_cpus, training.worker_gpus)
    free = [NodeRoom(node) for node in nodes]
    seating = _labelled(config, "serving", nodes, free)
    working = _labelled(config, "training", nodes, free)
    servers = serving.replicas * sum(map(len, cuts.values()))
    _check_totals(config, server, worker, servers, nodes)
    bundles: list[Resources] = []
    seats: list[Seat] = []
    # Set by set, so that nodes hold all teachers where they have the room.
    for replica in range(serving.replicas):
        for teacher, shards in cuts.items():
            for spot in _placed(config, teacher, len(shards), server, seating):
                for shard in spot.shards:
                    where = len(bundles), spot.node, spot.device(shard)
                    seats.append(Seat(teacher, replica, shard, shards[shard], *where))
                bundles.append(spot.bundle)
    for rank in range(min(training.worker_range)):
        fits = any(room.take(worker) is not None for room in working)
        if not fits and not serving.wait_for_nodes:
            raise InputError(
                "training.workers",
                f"no node has {_shown(worker)} left for worker {rank}",
                "fewer workers",
            )
    return PlacementPlan(
        bundles=tuple(bundles),
        strategy="PACK" if _scattered(seats) else serving.strategy.upper(),
        seats=tuple(seats),
        server=server,
        workers=tuple(worker for _ in range(min(training.worker_range))),
        most_workers=max(training.worker_range),
        server_labels=serving.node_labels,
        is_checked=not serving.gpus or room_of(config, nodes) is not None,
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
    config: RunConfig, teacher: str, shards: int, server: Resources, free: Free
) -> list[Spot]:
    """The bundles of one replica, in the order of its shards."""
    spread = config.serving.strategy == "spread"
    whole = together(server, shards, sorted(free, key=lambda room: -room.cpus) if spread else free)
    if whole is not None:
        return [whole]
    spots = apart(server, shards, free)
    placed = sum(len(spot.shards) for spot in spots)
    if placed < shards and not config.serving.wait_for_nodes:
        raise InputError(
            "serving",
            f"no node has {_shown(server)} left for {teacher}",
            "smaller or fewer servers",
        )
    coming = [Spot(server, range(i, i + 1), COMING, ()) for i in range(placed, shards)]
    return [*spots, *coming]


def _scattered(seats: Sequence[Seat]) -> bool:
    """Whether a replica has several shards on nodes to come."""
    coming = Counter((seat.teacher, seat.replica) for seat in seats if seat.node == COMING)
    return max(coming.values(), default=0) > 1


def _check_totals(
    config: RunConfig,
    server: Resources,
    worker: Resources,
    servers: int,
    nodes: Sequence[NodeResources],
) -> None:
    if config.serving.wait_for_nodes:
        return
    for kind, keys, there in (
        ("GPU", ("serving.gpus", "training.worker_gpus"), sum(node.gpus for node in nodes)),
        ("CPU", ("serving.cpus", "training.worker_cpus"), sum(node.cpus for node in nodes)),
    ):
        serving = server.get(kind, 0) * servers
        training = worker.get(kind, 0) * min(config.training.worker_range)
        if serving + training > there + 1e-9:
            raise InputError(
                keys[0] if serving >= training else keys[1],
                f"servers and workers ask for {serving + training:g} {kind}s where there are "
                f"{there:g}",
                "ask for less, add nodes, or set serving.wait_for_nodes where the cluster grows",
            )


def _shown(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())


def _held(seat: Seat) -> str:
    first, last = seat.stages.start + 1, seat.stages.stop
    return (
        f"shard {seat.shard} (part {first})"
        if first == last
        else (f"shard {seat.shard} (parts {first} to {last})")
    )
