"""What a run leaves, and what its recipe leaves to be regrouped and fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dfka_dist.models.target import Architecture
from dfka_dist.training.checkpoint import State
from dfka_dist.training.engines import Engine
from dfka_dist.training.regroup import DualState
from dfka_dist.training.supply import Supply

SAMPLES = 10  # even: two neighbours have the same label
"""Synthesized images shown for each label."""
SHOWN = 100
"""Labels that are shown, from the first: a thousand would make a picture nothing can open."""
TUNED = "fine-tuned"


@dataclass(frozen=True)
class Network:
    """One target that came out of a run."""

    name: str
    design: Architecture
    state: State
    data_free: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, on every rank alike."""

    network: Network
    """The result."""
    candidates: list[Network]
    """What the result was chosen from, in the order of time; the result is among them."""
    depths: list[Network]
    """The same target with all branches at any other depth, and with those of least dual loss."""
    dual_losses: dict[str, dict[int, float]]
    """L_d^{b,m} per teacher and depth; empty where it was not measured."""
    samples: Tensor | None
    """(L * SAMPLES, C, H, W) in [0, 1], label after label, L of them at most SHOWN; None without a
    generator."""
    phases: list[dict[str, Any]]
    cpu_seconds: float
    """Of all workers."""
    saving_seconds: float = 0.0
    """That the workers' last start spent on checkpoints."""
    share: tuple[Tensor, Tensor] | None = None
    """Of a run in a contest its images for the others' probe set, see `ProbeSet.share`."""

    @property
    def networks(self) -> list[Network]:
        """Everything that can be scored, each once."""
        return [*self.candidates, *self.depths]

    @property
    def design(self) -> Architecture:
        """Of the result."""
        return self.network.design

    @property
    def state(self) -> State:
        """Of the result."""
        return self.network.state

    @property
    def data_free(self) -> dict[str, Any]:
        """Of the result."""
        return self.network.data_free


@dataclass
class Learned:
    """What a recipe leaves to be regrouped and fine-tuned."""

    duals: list[tuple[str, DualState]]
    """Candidates, in the order of time."""
    supply: Supply
    generator: Engine | None = None


@dataclass
class Finished:
    """What regrouping and fine-tuning make of it; see `Outcome`."""

    candidates: list[Network]
    depths: list[Network]
    dual_losses: dict[str, dict[int, float]]
