"""Into how many servers a teacher is cut, and between which of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.nodes import NodeResources

GIB = 2**30
CONTEXT = GIB // 2
"""What a process on a GPU takes before it holds anything."""


@dataclass(frozen=True)
class Needs:
    """What each stage of a teacher needs of a server's memory, in bytes.

    Args:
        fixed: parameters and buffers.
        graph: what one batch at work saves for its pullback.
        cache: bytes that the graphs of all batches before it may have together.
    """

    fixed: Sequence[int]
    graph: Sequence[int]
    cache: int

    def of(self, stages: range) -> int:
        """Of a server that holds these."""
        fixed, graph = (sum(v[s] for s in stages) for v in (self.fixed, self.graph))
        return CONTEXT + fixed + graph + self.cache


def cut_teachers(
    config: RunConfig,
    nodes: Sequence[NodeResources],
    descriptions: Mapping[str, TeacherDescription] | None,
) -> dict[str, list[range]]:
    """Per teacher the stages of each of its servers, the head being the last stage.

    As many servers as `serving.shards` says; without it as few as fit the memory of their part of a
    GPU, one where that is not known. Of all such cuts, one whose largest server is least.

    Args:
        descriptions: what the loaded teachers measured; without them nothing is known of memory.

    Raises:
        InputError: a teacher has not so many blocks, or does not fit.
    """
    room = room_of(config, nodes) if descriptions is not None else None
    found = {}
    for index, teacher in enumerate(config.teachers):
        needs = None
        if descriptions is not None:
            needs = needs_of(config, descriptions[teacher.name])
        found[teacher.name] = _cut(config, index, teacher, needs, room)
    return found


def balanced(needs: Needs, shards: int) -> list[range]:
    """The cut into so many whose largest part is least, the first of equals."""
    stages = len(needs.fixed)

    @cache
    def best(begin: int, parts: int) -> tuple[int, tuple[int, ...]]:
        if parts == 1:
            return needs.of(range(begin, stages)), (begin,)
        choices = []
        for end in range(begin + 1, stages - parts + 2):
            largest, begins = best(end, parts - 1)
            choices.append((max(needs.of(range(begin, end)), largest), (begin, *begins)))
        return min(choices)

    _, begins = best(0, shards)
    return [range(a, b) for a, b in zip(begins, (*begins[1:], stages), strict=True)]


def _cut(
    config: RunConfig, index: int, teacher: TeacherSpec, needs: Needs | None, room: int | None
) -> list[range]:
    stages, asked = len(teacher.blocks) + 1, config.serving.shards
    if asked is not None and asked > stages:
        raise InputError(
            "serving.shards",
            f"is {asked}, and {teacher.name} has {stages} parts, its head among them",
            f"{stages} or fewer, or more blocks under teachers.{index}.blocks",
        )
    even = needs or Needs([1] * stages, [0] * stages, 0)
    if room is None:
        return balanced(even, asked or 1)
    for count in [asked] if asked else range(1, stages + 1):
        parts = balanced(even, count)
        if max(map(even.of, parts)) <= room:
            return parts
    largest = max(map(even.of, parts))
    raise InputError(
        "serving.gpus",
        f"{teacher.name} in {len(parts)} servers needs {largest / GIB:.2f} GiB for the largest, "
        f"and {config.serving.gpus:g} of a GPU is {room / GIB:.2f}",
        "more of a GPU, more serving.shards, or a smaller batch_size or serving.cache_megabytes",
    )


def room_of(config: RunConfig, nodes: Sequence[NodeResources]) -> int | None:
    """A server's part of the smallest GPU that is known, in bytes, of nodes where servers may be;
    None where nothing is known."""
    wanted = config.serving.node_labels.items()
    those = [node for node in nodes if node.gpus and wanted <= node.labels.items()]
    known = [node.gpu_gigabytes for node in those if node.gpu_gigabytes is not None]
    if config.serving.gpu_gigabytes is not None:
        known = [config.serving.gpu_gigabytes]
    return int(config.serving.gpus * min(known) * GIB) if known and config.serving.gpus else None


def needs_of(config: RunConfig, description: TeacherDescription) -> Needs:
    """What the stages of a teacher need in a run."""
    images = config.training.batch_size // min(config.training.worker_range)
    images = min(images, config.training.micro_batch or images)
    # In bf16 every batch at work has a copy of the frozen parameters, of half the bytes.
    fp32 = (config.serving.precision or config.training.precision) == "fp32"
    sums = int(_asks_for_sums(config))
    stages = description.graph_bytes, description.sums_bytes, description.stage_bytes
    graph = [
        images * (saved + sums * besides) + (0 if fp32 else fixed // 2)
        for saved, besides, fixed in zip(*stages, strict=True)
    ]
    return Needs(description.stage_bytes, graph, config.serving.cache_megabytes * 2**20)


def _asks_for_sums(config: RunConfig) -> bool:
    """Whether a run, or a trial of its sweep, has the term that wants statistics."""
    tried = {**config.search.space, **config.search.trial} if config.search else {}
    return bool(config.losses.batch_norm) or "losses.batch_norm" in tried
