"""Where the servers go: a pure function of the configuration and the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from dfka_dist.config import Node, RunConfig
from dfka_dist.errors import InputError

_NODES = "a YAML list of {name, cpus, gpus}"
Resources = dict[str, float]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NodeResources(Node):
    """What one machine of the cluster has."""

    name: str
    """For people; several nodes may share it."""
    cpus: Amount
    gpus: Amount = 0.0


@dataclass(frozen=True)
class Seat:
    """One server's place: a replica of a teacher in a bundle of the placement group."""

    teacher: str
    replica: int
    bundle: int
    node: str
    """Where first fit puts it; Ray may choose another node of the same kind."""


@dataclass(frozen=True)
class PlacementPlan:
    """What is asked of Ray, and how it could be met."""

    bundles: tuple[Resources, ...]
    """One for each server."""
    strategy: str
    """Ray's: PACK or SPREAD."""
    seats: tuple[Seat, ...]
    workers: tuple[Resources, ...]
    """One for each worker of the trainer."""

    @property
    def cpus(self) -> float:
        """All that is asked for."""
        return sum(resources["CPU"] for resources in (*self.bundles, *self.workers))

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        servers = [
            f"  server of {seat.teacher}, replica {seat.replica}: "
            f"{_shown(self.bundles[seat.bundle])} on {seat.node}"
            for seat in self.seats
        ]
        trainers = [
            f"  worker {rank}: {_shown(resources)}" for rank, resources in enumerate(self.workers)
        ]
        return [f"placement ({self.strategy}):", *servers, *trainers]


def plan(config: RunConfig, nodes: Sequence[NodeResources]) -> PlacementPlan:
    """Give every replica of every teacher a bundle; check that servers and workers fit.

    Raises:
        InputError: there is not enough of something, and the cluster does not grow.
    """
    serving, training = config.serving, config.training
    wanted = [
        (teacher.name, replica)
        for teacher in config.teachers
        for replica in range(serving.replicas)
    ]
    bundle = _resources(serving.cpus, serving.gpus)
    worker = _resources(training.worker_cpus, training.worker_gpus)
    free = [(node.name, _resources(node.cpus, node.gpus)) for node in nodes]
    _check_totals(config, bundle, worker, len(wanted), free)
    seats = []
    for index, (teacher, replica) in enumerate(wanted):
        node = _fit(bundle, free, spread=serving.strategy == "spread")
        if node is None and not serving.wait_for_nodes:
            raise InputError(
                "serving",
                f"no node has {_shown(bundle)} left for {teacher}",
                "smaller or fewer servers",
            )
        seats.append(Seat(teacher, replica, index, node or "a node to come"))
    for rank in range(training.workers):
        if _fit(worker, free, spread=False) is None and not serving.wait_for_nodes:
            raise InputError(
                "training.workers",
                f"no node has {_shown(worker)} left for worker {rank}",
                "fewer workers",
            )
    return PlacementPlan(
        bundles=tuple(bundle for _ in wanted),
        strategy=serving.strategy.upper(),
        seats=tuple(seats),
        workers=tuple(worker for _ in range(training.workers)),
    )


def read_nodes(path: Path) -> list[NodeResources]:
    """The nodes of a cluster, from a YAML list of {name, cpus, gpus}.

    Raises:
        InputError: the file is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[NodeResources]).validate_python(tree)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("--nodes", f"{path}: {reason}", _NODES) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = f"{path}: {where}: {problem['msg']}" if where else f"{path} is no list"
        raise InputError("--nodes", reason, _NODES) from error


def _check_totals(
    config: RunConfig,
    bundle: Resources,
    worker: Resources,
    servers: int,
    free: Sequence[tuple[str, Resources]],
) -> None:
    if config.serving.wait_for_nodes:
        return
    for kind, keys in (
        ("GPU", ("serving.gpus", "training.worker_gpus")),
        ("CPU", ("serving.cpus", "training.worker_cpus")),
    ):
        asked = bundle.get(kind, 0) * servers + worker.get(kind, 0) * config.training.workers
        there = sum(resources.get(kind, 0) for _, resources in free)
        if asked > there:
            key = (
                keys[0]
                if bundle.get(kind, 0) * servers >= worker.get(kind, 0) * config.training.workers
                else keys[1]
            )
            raise InputError(
                key,
                f"servers and workers ask for {asked:g} {kind}s where there are {there:g}",
                "ask for less, add nodes, or set serving.wait_for_nodes where the cluster grows",
            )


def _fit(wanted: Resources, free: Sequence[tuple[str, Resources]], *, spread: bool) -> str | None:
    """Take the resources from the first node that has them; the emptiest first when spreading."""
    for name, left in sorted(free, key=lambda node: -node[1]["CPU"]) if spread else free:
        if all(left.get(kind, 0) >= amount - 1e-9 for kind, amount in wanted.items()):
            for kind, amount in wanted.items():
                left[kind] -= amount
            return name
    return None


def _resources(cpus: float, gpus: float) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _shown(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
