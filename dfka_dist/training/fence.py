"""Which start of a run may write to a place: the newest, and no other.

The newest start leaves its mark there, and its workers add one of their own group whenever they
meet. Earlier ones that still live find it before they write or remove anything. What they are at
just then they may bring to its end: no file system that is meant here has locks.
"""

from __future__ import annotations

import logging
import time
import uuid

from pyarrow import fs

from dfka_dist.errors import RunFailed
from dfka_dist.places import UNREACHABLE, Place
from dfka_dist.training.collectives import gathered, rank_and_size, said_by_any

log = logging.getLogger(__name__)

OWNER = "owner"
"""File with the mark of the start that may write, and of its newest group of workers."""
SETTLING = 60.0
"""Seconds until every node sees what another has written: a network file system may remember for so
long what was there before."""
_REMEDY = "a storage that every node reaches, or no training.checkpoint.shared"


class Fence:
    """Around a place.

    Args:
        own: mark of the start that this process belongs to, and behind a dot of its group of
            workers; None if it has none, and nothing is fenced off from it.
    """

    def __init__(self, place: Place, own: str | None = None) -> None:
        self._place, self.own = place, own

    def begin(self) -> None:
        """Be the newest start from now on.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: the place cannot be written.
        """
        self._mark(uuid.uuid4().hex)

    def meet(self) -> None:
        """Be the newest group of workers of this start; a collective.

        Raises:
            RunFailed: one of them does not find the mark that the start has left: it looks at
                another disk, or there is a newer start; on all.
        """
        if not all(gathered(self.own is not None)):
            return
        failure = said_by_any(self._missing())
        if failure is not None:
            raise RunFailed(failure)
        if rank_and_size()[0] == 0:
            assert self.own is not None
            try:
                self._mark(f"{self.own.partition('.')[0]}.{uuid.uuid4().hex[:8]}")
            except UNREACHABLE as error:  # such as a full disk, which a run outlasts
                said = self._place.plain(error)
                log.warning("%s cannot be written: %s; the run goes on", self._place, said)
        self.own = gathered(self.own)[0]

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
                failure = self._unreadable(error)
        crossed, failure = gathered((crossed, failure))[0]
        if crossed is not None:
            raise RunFailed(crossed)
        return failure

    def crossed(self) -> str | None:
        """What is wrong, if there is a newer start, or a newer group of this one's workers.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: the place cannot be read.
        """
        owner = self._owner()
        if self.own is None or owner is None or self._is_own(owner):
            return None
        return f"another start of this run writes to {self._place}"

    def _mark(self, own: str) -> None:
        with self._place.create(OWNER) as file:
            file.write(own.encode())
        self._place.publish(OWNER)
        self.own = own

    def _owner(self) -> str | None:
        """The mark that is there."""
        there = f"{self._place.folder}/{OWNER}"
        if self._place.files.get_file_info(there).type == fs.FileType.NotFound:
            return None
        with self._place.open(OWNER) as file:
            found: str = file.read().decode(errors="replace")
        return found

    def _is_own(self, owner: str) -> bool:
        """One that knows no group, such as the driver, belongs to all of its start."""
        assert self.own is not None
        start, _, group = self.own.partition(".")
        return owner == self.own if group else owner.partition(".")[0] == start

    def _missing(self) -> str | None:
        """What is wrong, if the own mark is not there, nor comes to be seen."""
        until = time.monotonic() + SETTLING
        while True:
            try:
                owner = self._owner()
            except UNREACHABLE as error:
                return self._unreadable(error)
            if owner is not None and self._is_own(owner):
                return None
            if time.monotonic() > until:
                break
            time.sleep(1.0)
        if owner is None:
            what = "is not what the run was started with as it is seen from here"
            return f"{self._place} {what}: {_REMEDY}"
        return self.crossed()

    def _unreadable(self, error: BaseException) -> str:
        return f"{self._place} cannot be read: {self._place.plain(error)}"
