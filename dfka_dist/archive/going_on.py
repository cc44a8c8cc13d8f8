"""What a run that goes on finds of its archive: what its checkpoint knows of, and what is to go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfka_dist.archive.contents import Contents, shard_name
from dfka_dist.archive.reader import footer
from dfka_dist.places import UNREACHABLE, Place


def refuse_another_run(uri: str, key: str, run: str) -> None:
    """Make sure that a place holds no archive but one of a run.

    Args:
        key: configuration key that an error names.

    Raises:
        InputError: it holds shards of another run, or of none, or cannot be read.
    """
    place = Place(uri, key)
    for name in place.shards():
        found = footer(place, name)[0].run
        if found != run:
            raise place.error(f"already holds an archive, of the run {found}", "another place")


def keep_only(uri: str, key: str, contents: Contents, counts: Sequence[int], *, lost: int) -> None:
    """Remove what a run has written to its archive since a checkpoint.

    Args:
        key: configuration key that an error names.
        contents: of the run's shards.
        counts: by rank, how many shards of each worker there were then; none before there is a
            checkpoint.
        lost: steps that a run may have made before there is one.

    Raises:
        InputError: some of these are not there, or others are not the run's, or it has come further
            than it could without a checkpoint.
    """
    place = Place(uri, key)
    there = set(place.shards())
    known = {shard_name(rank, n) for rank, count in enumerate(counts) for n in range(count)}
    if known - there:
        what = f"lacks {min(known - there)}, which this run has written"
        raise place.error(what, "the place where the run began")
    later = sorted(there - known)
    for name in later:
        found, told = footer(place, name)
        if found != contents:
            what = f"already holds an archive, of the run {found.run}"
            if found.run == contents.run:
                what += " with other teachers, labels or images"
            raise place.error(what, "another place")
        if not counts and _last_step(told) > lost:
            what = f"holds step {_last_step(told)} of this run, of which there is no checkpoint"
            raise place.error(what, "the storage of its checkpoints, or another place")
    for name in later:
        try:
            place.remove(name)
        except UNREACHABLE as error:
            what = f"cannot be written: {place.plain(error)}"
            raise place.error(what, "a place where files can be removed") from None


def _last_step(told: Any) -> int:
    """The last step of a shard, by its footer."""
    column = told.schema.to_arrow_schema().get_field_index("step")
    groups = (told.row_group(index) for index in range(told.num_row_groups))
    return max(int(group.column(column).statistics.max) for group in groups)
