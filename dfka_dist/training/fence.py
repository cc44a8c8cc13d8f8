"""Which start of a run may write to a place: the newest, and no other.

The newest start leaves its mark there, and an earlier one whose workers still live finds it before
it writes or removes anything. What it is at just then it may bring to its end: no file system that
is meant here has locks.
"""

from __future__ import annotations

import uuid

from pyarrow import fs

from dfka_dist.errors import RunFailed
from dfka_dist.places import UNREACHABLE, Place
from dfka_dist.training.collectives import gathered, rank_and_size

OWNER = "owner"
"""File with the mark of the start that may write."""


class Fence:
    """Around a place.

    Args:
        own: mark of the start that this process belongs to; None if it has none, and nothing is
            fenced off from it.
    """

    def __init__(self, place: Place, own: str | None = None) -> None:
        self._place, self.own = place, own

    def begin(self) -> None:
        """Be the newest start from now on.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: the place cannot be written.
        """
        self.own = uuid.uuid4().hex
        with self._place.create(OWNER) as file:
            file.write(self.own.encode())
        self._place.publish(OWNER)

    def refuse_another(self) -> str | None:
        """Make sure that there is no newer start; a collective, in which rank 0 looks.

        Returns:
            why that cannot be seen, if it cannot.

        Raises:
            RunFailed: there is one; on all.
        """
        crossed, failure = None, None
        if rank_and_size()[0] == 0:
            try:
                crossed = self.crossed()
            except UNREACHABLE as error:
                failure = f"{self._place} cannot be read: {self._place.plain(error)}"
        crossed, failure = gathered((crossed, failure))[0]
        if crossed is not None:
            raise RunFailed(crossed)
        return failure

    def crossed(self) -> str | None:
        """What is wrong, if there is a newer start.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: the place cannot be read.
        """
        there = f"{self._place.folder}/{OWNER}"
        if self.own is None or self._place.files.get_file_info(there).type == fs.FileType.NotFound:
            return None
        with self._place.open(OWNER) as file:
            owner = file.read().decode(errors="replace")
        return None if owner == self.own else f"another start of this run writes to {self._place}"
