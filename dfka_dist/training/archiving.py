"""The archive of a run, which goes on from a checkpoint as the run does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dfka_dist.archive import ArchiveWriter
from dfka_dist.training.checkpoint import Reading, Writing, read_json, write_json
from dfka_dist.training.collectives import gathered


class Archiving:
    """Every checkpoint knows how many shards there are, all of them complete; what was written
    after it is removed, for it will be written again.

    Args:
        keep_only: removes all shards but as many of each rank as are told.
        writer: makes one, for a worker that has so many shards.
    """

    def __init__(
        self,
        keep_only: Callable[[Sequence[int]], None],
        writer: Callable[[int], ArchiveWriter],
    ) -> None:
        self._keep_only, self._new_writer = keep_only, writer
        self._counts: list[int] = []
        self._writer: ArchiveWriter | None = None

    @contextmanager
    def writing(self, rank: int) -> Iterator[ArchiveWriter]:
        """The archive is open; a collective.

        Raises:
            InputError: it is another run's, or lacks what this one has written.
        """
        if rank == 0:
            self._keep_only(self._counts)
        gathered(None)  # nothing is written before that
        count = self._counts[rank] if rank < len(self._counts) else 0
        with self._new_writer(count) as self._writer:
            yield self._writer

    def save(self, writing: Writing, name: str) -> None:
        """See `Held`."""
        assert self._writer is not None
        self._writer.close()
        # More workers than there are now may have written before.
        own = {"shards": self._writer.shards, "others": self._counts[writing.size :]}
        write_json(writing.under(name) / f"{writing.rank}.json", own)

    def restore(self, reading: Reading, name: str) -> None:
        """See `Held`."""
        told = [read_json(reading.folder / name / f"{r}.json") for r in range(reading.workers)]
        self._counts = [int(each["shards"]) for each in told] + list(told[0]["others"])
