"""What a run that goes on finds of its archive: what its checkpoint knows of, and what is to go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dfka_dist.archive.contents import shard_name
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
    _refuse_others(place, place.shards(), run)


def keep_only(uri: str, key: str, run: str, counts: Sequence[int]) -> None:
    """Remove what a run has written to its archive since a checkpoint.

    Args:
        key: configuration key that an error names.
        counts: by rank, how many shards of each worker there were then.

    Raises:
        InputError: some of these are not there, or others are not the run's.
    """
    place = Place(uri, key)
    there = set(place.shards())
    known = {shard_name(rank, n) for rank, count in enumerate(counts) for n in range(count)}
    if known - there:
        what = f"lacks {min(known - there)}, which this run has written"
        raise place.error(what, "the place where the run began")
    later = sorted(there - known)
    _refuse_others(place, later, run)
    for name in later:
        try:
            place.remove(name)
        except UNREACHABLE as error:
            what = f"cannot be written: {place.plain(error)}"
            raise place.error(what, "a place where files can be removed") from None


def _refuse_others(place: Place, names: Iterable[str], run: str) -> None:
    for name in names:
        found = footer(place, name)[0].run
        if found != run:
            raise place.error(f"already holds an archive, of the run {found}", "another place")
