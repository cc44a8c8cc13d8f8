"""What stands in a shard: its columns, and the metadata that say what they mean."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow

from dfka_dist.config import Count, Name, Node, Task
from dfka_dist.places import ENDING

METADATA = b"dfka_dist"
"""Key of the schema's metadata under which `Contents` stand as JSON."""


class ArchivedTeacher(Node):
    """A teacher whose answers an archive holds."""

    name: Name
    task: Task
    labels: list[str]
    """The K names of its logits."""
    sha256: str
    """Of its weight file."""


class Contents(Node):
    """What all shards of an archive say of themselves."""

    format: Literal[1] = 1
    run: str
    teachers: list[ArchivedTeacher]
    labels: list[str]
    """What images were asked to show, some of these."""
    shape: tuple[Count, Count, Count]
    """(C, H, W)"""

    @cached_property
    def schema(self) -> Any:
        """The columns of a shard, as a `pyarrow.Schema`.

        | column | what |
        |---|---|
        | image | C*H*W float16, little endian: bit for bit what a memory of 16 bits keeps |
        | step | the step that made it |
        | column | its global index within the batch of that step |
        | home | the teacher that it was made for, by its number in `teachers`; -1 for none |
        | asked | the labels that it was asked to show |
        | logits.NAME | K float32, for every teacher; zeros if it was not asked |

        Only its home was asked about an image that has one, and all teachers about an image
        without: the zeros of the others, where `home` is neither -1 nor theirs, say nothing.
        """
        types = {
            "image": pyarrow.binary(2 * math.prod(self.shape)),
            "step": pyarrow.int32(),
            "column": pyarrow.int32(),
            "home": pyarrow.int16(),
            "asked": _list(pyarrow.string()),
        }
        for teacher in self.teachers:
            types[logits_of(teacher.name)] = _list(pyarrow.float32(), len(teacher.labels))
        fields = [pyarrow.field(name, kind, nullable=False) for name, kind in types.items()]
        return pyarrow.schema(fields, metadata={METADATA: self.model_dump_json()})

    @cached_property
    def row(self) -> np.dtype[np.void]:
        """What training needs of one row, as it is kept in memory."""
        logits = [(logits_of(t.name), "<f4", (len(t.labels),)) for t in self.teachers]
        return np.dtype([("image", "<f2", self.shape), ("home", "<i2"), *logits])

    def rows_in(self, size: int) -> int:
        """How many rows fit into some bytes, and at least one."""
        return max(1, size // self.row.itemsize)


def shards_of(rank: int) -> str:
    """How the names of a worker's shards begin."""
    return f"part-{rank:05d}-"


def shard_name(rank: int, number: int) -> str:
    """Of a worker's shard, the first is 0."""
    return f"{shards_of(rank)}{number:05d}{ENDING}"


def logits_of(teacher: str) -> str:
    """The column with a teacher's answers."""
    return f"logits.{teacher}"


def _list(kind: Any, length: int = -1) -> Any:
    # Named as Parquet names it, so that a schema that was read equals the one that was written.
    return pyarrow.list_(pyarrow.field("element", kind, nullable=False), length)
