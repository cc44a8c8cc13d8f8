"""Room on this machine's disk for what one process of a run is at.

A process that is killed leaves its desk behind, and the next one of the same run clears it away. A
desk is locked by its process, and the kernel takes the lock back when that is dead: no other sign
holds in containers that share a disk, where a process cannot see those of others.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)


class Desk:
    """A folder of this process alone.

    Args:
        run: tells runs apart.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, run: str) -> None:
        while True:
            self._room = tempfile.TemporaryDirectory(prefix=_prefix(run))
            lock = _locked(self.folder)
            if lock is not None:
                break
            self._room.cleanup()  # it was cleared away before it was locked
        self._lock = lock

    @property
    def folder(self) -> Path:
        """Where it is."""
        return Path(self._room.name)

    def close(self) -> None:
        """Leave nothing of it."""
        self._room.cleanup()
        os.close(self._lock)


def clear_abandoned(run: str, patience: float = 0.0) -> None:
    """Remove the desks of a run's processes that are dead.

    Args:
        patience: seconds in which others may die yet.
    """
    until = time.monotonic() + patience
    while sum(not _cleared(each) for each in _all(run)) and time.monotonic() < until:
        time.sleep(0.1)


def _all(run: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{_prefix(run)}*"))


def _cleared(place: Path) -> bool:
    """Remove the desk of a process that is dead; whether there is nothing more to do."""
    lock = _locked(place)
    if lock is None:
        return not place.exists()
    log.info("clearing %s away, which a process left that is dead", place)
    try:
        shutil.rmtree(place)
    except OSError as error:
        log.warning("%s stays: %s", place, error)
    finally:
        os.close(lock)
    return True


def _prefix(run: str) -> str:
    return f"dfka-{hashlib.sha256(run.encode()).hexdigest()[:12]}-"


def _locked(place: Path) -> int | None:
    """A lock on a folder; none if another process has it, or it is gone, or not ours."""
    try:
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), place.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
