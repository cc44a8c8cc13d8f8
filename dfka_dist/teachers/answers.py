"""What comes back from a server: an answer to be opened, or what went wrong."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace
from typing import Any

import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from torch import Tensor

from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import InputGradient, TeacherOutput

GONE = RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError
"""What Ray raises for a server that died, for whatever reason, or for what it left behind."""


def is_gone(error: Exception) -> bool:
    """Whether a server died, or what it left for another; not what a teacher's own code raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, GONE)


def reason(error: Exception) -> str:
    """Why a server is gone, in one line of Ray's story: the last, or of one that took too much
    memory the first."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    return lines[0 if isinstance(cause, OutOfMemoryError) else -1]


def failure(name: str, rows: int, error: Exception) -> str:
    """What a teacher's own code raised; and what to do where it will never have the memory."""
    cause = getattr(error, "cause", error)
    no_room = isinstance(cause, torch.OutOfMemoryError | MemoryError)
    if no_room or "can't allocate memory" in str(cause):
        remedy = "training.micro_batch bounds how many, serving.cache_megabytes what is kept"
        return f"teacher {name} has no memory for {rows} images at once: {remedy}"
    return f"teacher {name} failed: {cause}"


def output(said: list[Any], device: torch.device) -> TeacherOutput:
    """Of one shard after another; each has the sums of its own layers, and zeros for the rest."""
    parts = [wire.decode_output(arrays, device) for arrays in said]
    sums = [part.sums for part in parts if part.sums is not None]
    return replace(parts[-1], sums=functools.reduce(operator.add, sums) if sums else None)


def gradient(said: list[Any], device: torch.device) -> InputGradient:
    """Of a replica, one."""
    return wire.decode_gradient(said[0], device)


def state(said: list[dict[str, wire.Array]]) -> dict[str, Tensor]:
    """Of one shard after another."""
    return {name: wire.decode(array) for own in said for name, array in own.items()}
