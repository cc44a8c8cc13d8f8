"""What a node has left for servers: CPUs, and of every GPU its part.

Ray gives a part of a GPU of one device, and several GPUs as whole devices; so three servers of 0.6
do not fit two GPUs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dfka_dist.teachers.nodes import NodeResources, Resources

SLACK = 1e-9


class NodeRoom:
    """What one node has left."""

    def __init__(self, node: NodeResources) -> None:
        self.name, self.cpus = node.name, node.cpus
        whole = int(node.gpus + SLACK)
        part = node.gpus - whole
        self.gpus = [1.0] * whole + [part] * (part > SLACK)
        """Free of each device."""

    def found(self, wanted: Resources) -> tuple[int, ...] | None:
        """The devices of which a bundle would be given its GPUs, a part of the fullest, as Ray does
        it; None where it has no room."""
        gpus = wanted.get("GPU", 0.0)
        if wanted["CPU"] > self.cpus + SLACK:
            return None
        count, each = math.ceil(gpus - SLACK), min(gpus, 1.0)
        fitting = sorted((left, i) for i, left in enumerate(self.gpus) if left >= each - SLACK)
        return tuple(i for _, i in fitting[:count]) if len(fitting) >= count else None

    def take(self, wanted: Resources) -> tuple[int, ...] | None:
        """Give a bundle what it wants; its devices, or None where it has no room."""
        devices = self.found(wanted)
        if devices is None:
            return None
        self.cpus -= wanted["CPU"]
        for device in devices:
            self.gpus[device] -= min(1.0, wanted["GPU"])
        return devices

    def bundle(self, server: Resources, count: int) -> int:
        """Servers that one bundle here can hold, so many at most."""
        fitting = (c for c in range(count, 0, -1) if self.found(times(server, c)) is not None)
        return next(fitting, 0)

    def holds(self, server: Resources, count: int) -> int:
        """Servers that several bundles here can hold, so many at most."""
        rest, left = copy.deepcopy(self), count
        while left and (most := rest.bundle(server, left)):
            rest.take(times(server, most))
            left -= most
        return count - left


@dataclass(frozen=True)
class Spot:
    """A bundle for some shards of a replica, and where it could be."""

    bundle: Resources
    shards: range
    node: str
    devices: tuple[int, ...]

    def device(self, shard: int) -> int | None:
        """The GPU of one of the shards."""
        if not self.devices:
            return None
        each = -(-len(self.shards) // len(self.devices))
        return self.devices[(shard - self.shards.start) // each]


def together(server: Resources, count: int, rooms: Sequence[NodeRoom]) -> Spot | None:
    """All shards of a replica in one bundle, on the first node that has room for it; for a bundle
    never spans two."""
    bundle = times(server, count)
    for room in rooms:
        devices = room.take(bundle)
        if devices is not None:
            return Spot(bundle, range(count), room.name, devices)
    return None


def apart(server: Resources, count: int, rooms: Sequence[NodeRoom]) -> list[Spot]:
    """The shards of a replica on as few nodes as can be, those with the most room first; as many as
    find room, those of a bundle on one node."""
    spots: list[Spot] = []
    begin = 0
    for room in sorted(rooms, key=lambda room: -room.holds(server, count)):
        while begin < count and (most := room.bundle(server, count - begin)):
            bundle = times(server, most)
            devices = room.take(bundle)
            assert devices is not None
            spots.append(Spot(bundle, range(begin, begin + most), room.name, devices))
            begin += most
    return spots


def times(server: Resources, count: int) -> Resources:
    """Of several servers in one bundle; what does not fit into one GPU takes whole ones, each with
    as many servers as fit it."""
    each = server.get("GPU", 0.0)
    gpus = each * count
    if gpus > 1 + SLACK:
        gpus = math.ceil(count / math.floor(1 / each + SLACK))
    return amounts(server["CPU"] * count, gpus)


def amounts(cpus: float, gpus: float) -> Resources:
    """As Ray counts them; no word of GPUs without any."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
