"""What the trainer knows of its teachers, wherever they live.

A `Question` is asked of several teachers at once with `forward`; the cotangents of their answers
go back to the question's inputs with `pullback`. Both return at once: ask all first, then await.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from dfka_dist.config import Precision, TeacherSpec
from dfka_dist.models.filters import Shape

Answer = TypeVar("Answer", covariant=True)


@dataclass(frozen=True)
class BatchNormLayer:
    """One BatchNorm layer of a teacher, by its module path."""

    path: str
    channels: int
    depth: int
    """Number of the block that holds it; B+1 for the head."""


@dataclass(frozen=True)
class TeacherDescription:
    """What a teacher tells about itself before anything is asked."""

    spec: TeacherSpec
    shapes: tuple[Shape, ...]
    """(C, H, W) at depths 0..B."""
    embedding: int | None
    """E, the width in front of the last fully connected layer; None without such a layer."""
    layers: tuple[BatchNormLayer, ...]
    running_var: Tensor
    """(sum of the layers' channels,) fp32."""
    parameters: int
    tail_parameters: tuple[int, ...]
    """Behind depths 0..B, the head's among them."""
    stage_bytes: tuple[int, ...]
    """Parameters and buffers of blocks 1..B and of the head."""
    graph_bytes: tuple[int, ...]
    """What each of them keeps of one image between forward and pullback, in fp32."""
    sums_bytes: tuple[int, ...]
    """What each keeps besides where statistics are asked for."""
    sha256: str

    @property
    def depth(self) -> int:
        """B, the number of blocks."""
        return len(self.shapes) - 1

    def matching(self, depth: int, of: int) -> int:
        """The depth of this teacher that lies as deep as `depth` in a network of `of` blocks.

        0 is the image and `of` lies behind the last block, whatever the number of blocks.
        """
        return max(1, (2 * depth * self.depth + of) // (2 * of)) if depth else 0


@dataclass(frozen=True)
class BatchNormSums:
    """Per BatchNorm layer, sums over batch and picture; sums of parts of a batch may be added."""

    count: Tensor
    """(L,) values per channel."""
    first: Tensor
    """(sum of channels,) sum of (x - running mean)."""
    second: Tensor
    """(sum of channels,) sum of (x - running mean) squared."""

    def __add__(self, other: BatchNormSums) -> BatchNormSums:
        return BatchNormSums(
            self.count + other.count, self.first + other.first, self.second + other.second
        )


@dataclass(frozen=True)
class Wanted:
    """What an answer shall hold besides logits; only what is asked for is computed and travels."""

    embedding: bool = False
    sums: bool = False
    gradient: bool = False
    """Keep the graph for a `pullback`."""


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher answers; also the cotangents of an answer, None where there is none."""

    logits: Tensor | None
    """(N, K)"""
    embedding: Tensor | None = None
    """(N, E)"""
    sums: BatchNormSums | None = None
    feature: Tensor | None = None
    """(N, C, H, W) from a shard that others stand behind, which has no logits then."""


@dataclass(frozen=True)
class InputGradient:
    """What `pullback` gives: the gradients of a question's inputs, for one teacher."""

    inputs: Tensor
    """(N, C, H, W), to be read and not written to: it may be shared memory."""
    gate: Tensor | None
    """(N, C) where the question had gates."""


@dataclass(frozen=True)
class Question:
    """One batch for several teachers."""

    inputs: Tensor
    """(N, C, H, W): images in [0, 1] at depth 0, else features from behind block `depth`."""
    teachers: tuple[str, ...]
    wanted: Wanted = Wanted()
    depth: int = 0
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    """Per teacher (N, C), multiplied onto the inputs by channel: the feature travels once."""
    precision: Precision = "fp32"
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Under which servers keep the graph."""


class Pending(Protocol[Answer]):
    """Something that has been asked for."""

    def result(self) -> Answer:
        """Wait for it.

        Raises:
            TeacherUnavailable: a teacher has no replica left.
        """


class Teachers(Protocol):
    """All teachers of a run."""

    @property
    def descriptions(self) -> Mapping[str, TeacherDescription]:
        """By name, in the order of the configuration."""

    @property
    def waited(self) -> float:
        """Seconds that the calling thread has stood still for answers so far."""

    @property
    def waited_beside(self) -> float:
        """The same of all other threads together: those of whoever helps the caller."""

    @property
    def worked(self) -> float | None:
        """Seconds that a server has computed for this caller so far, the mean over all servers;
        None where there is none. What it computed for others is not in it."""

    def forward(self, question: Question) -> Pending[dict[str, TeacherOutput]]:
        """Ask every teacher of the question; outputs are detached, fp32 or wider."""

    def pullback(
        self, question: Question, cotangents: Mapping[str, TeacherOutput]
    ) -> Pending[dict[str, InputGradient]]:
        """Carry cotangents of the answers to a question back to its inputs, per teacher.

        A question that asked for gradients is pulled back once, or dropped.
        """

    def drop(self, question: Question) -> None:
        """Forget the graph of a question that will not be pulled back."""

    def tail(self, teacher: str, depth: int) -> dict[str, Tensor]:
        """State of a teacher's blocks behind `depth` and of its head; see `BlockChain.tail`."""
