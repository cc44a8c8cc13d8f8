"""A shelf that fails one worker, which then leaves the other in a collective."""

from __future__ import annotations

from typing import Any

from dfka_dist.errors import RunFailed
from dfka_dist.training.checkpoint import Reading
from dfka_dist.training.collectives import rank_and_size
from dfka_dist.training.shelf import FolderShelf


class OneSided(FolderShelf):
    """Cannot be read by the last worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OneSided, (self._uri, self._keep)

    def newest(self) -> Reading | None:
        rank, size = rank_and_size()
        if rank == size - 1:
            raise RunFailed("this worker cannot read")
        return super().newest()
