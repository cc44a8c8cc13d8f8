"""The machines of a cluster, and what they have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from dfka_dist.config import Node
from dfka_dist.errors import InputError
from dfka_dist.loading import plain

_NODES = "a YAML list of {name, cpus, gpus, gpu_gigabytes, labels}"
Resources = dict[str, float]
"""As Ray counts them: CPU and GPU."""
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NodeResources(Node):
    """What one machine of the cluster has."""

    name: str
    """For people; several nodes may share it."""
    cpus: Amount
    gpus: Amount = 0.0
    gpu_gigabytes: Amount | None = None
    """Memory of each of its GPUs, in GiB; None where nobody knows."""
    labels: dict[str, str] = Field(default_factory=dict)
    """As Ray knows them."""


def read_nodes(path: Path) -> list[NodeResources]:
    """The nodes of a cluster, from a YAML list of {name, cpus, gpus, gpu_gigabytes, labels}.

    Raises:
        InputError: the file is wrong.
    """
    try:
        tree = plain(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[NodeResources]).validate_python(tree)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("--nodes", f"{path}: {reason}", _NODES) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = f"{path}: {where}: {problem['msg']}" if where else f"{path} is no list"
        raise InputError("--nodes", reason, _NODES) from error
