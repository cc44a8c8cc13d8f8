"""Where a run happens, how its teachers are served, and what it is scored on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dfka_dist.config.values import (
    Count,
    Cpus,
    DataSource,
    Few,
    Label,
    Name,
    Node,
    Precision,
    Seconds,
)


class RunSection(Node):
    """Who the run is and where it happens."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    address: str | None = None
    """Ray cluster to connect to; without it the run starts a private one on this machine."""


class ServingSpec(Node):
    """How the teachers are served."""

    replicas: Few = 1
    in_flight: Count = 4
    """Calls that one client may have outstanding with one replica, in each of its threads."""
    cpus: Cpus = 0.5
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of a GPU for each server."""
    shards: Few | None = None
    """Servers of one replica, each with some of the teacher's blocks; without it as few as the
    memory of their part of a GPU allows, one where that is not known."""
    gpu_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """Memory of one GPU, in GiB. Without it what `--nodes` or this machine says; a Ray cluster says
    nothing, and without it no teacher is cut there by itself."""
    threads: Few = 1
    cache_megabytes: Count = 1024
    """Bound on the graphs that a server keeps between forward and pullback."""
    precision: Precision | None = None
    """What teachers compute in; without it what the trainer does. Statistics are summed in fp32."""
    compile: bool = False
    """Have every block compiled by torch.compile when its first questions come."""
    strategy: Literal["pack", "spread"] = "pack"
    node_labels: dict[str, str] = {}
    """Ray's labels of the nodes where servers may be; without any all nodes."""
    start_timeout: Seconds = 120.0
    restarts: Annotated[int, Field(ge=0, le=65_536)] = 3
    """How often a dead server is started again."""
    wire: Precision = "fp32"
    """What travels between trainer and teachers; statistics are never less than fp32."""
    timeout: Seconds = 600.0
    """Seconds after which an answer that does not come is asked of another replica, or ends the run
    where there is none."""
    wait_for_nodes: bool = False
    """The cluster can grow: wait for nodes that are not there yet instead of refusing the plan."""

    @property
    def window(self) -> int:
        """Questions that are asked ahead of need: as many as all replicas of a teacher may have."""
        return self.in_flight * self.replicas


class EvaluationSpec(Node):
    """Test data, for reporting only."""

    source: DataSource
    teachers: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    labels: list[Label] | None = None
    """Names of the integer classes of the data, in their order; without it the integers
    themselves."""
    split: Literal["train", "test"] = "test"
