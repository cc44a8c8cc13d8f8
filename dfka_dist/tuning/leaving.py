"""Trials on their way out: those that were told to stop are waited for, and what is left of those
that died or did not come to it is removed."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from dfka_dist import presence
from dfka_dist.launch import PREFIX
from dfka_dist.tuning.records import Folder

POLL_SECONDS = 0.1
LOOKING = 1.0
"""Seconds from one look for what dead trials have left to the next."""


def prefix(name: str) -> str:
    """Of a trial's temporary folder."""
    return f"{PREFIX}{name}-"


class Leavers:
    """The trials of a sweep that are over for Ray Tune, and may not be gone yet.

    Args:
        patience: seconds in which a trial that was told to stop has let everything go.
    """

    def __init__(self, folder: Folder, patience: float) -> None:
        self._folder, self._patience = folder, patience
        self._leaving: dict[str, float] = {}
        self._dead: dict[str, float] = {}
        self._looked = 0.0

    def told(self, name: str) -> None:
        """A trial is to stop, or has ended."""
        self._leaving[name] = time.monotonic() + self._patience

    def died(self, name: str) -> None:
        """A trial's process died; what it started dies behind it, and leaves the room taken."""
        self._folder.ended(name)
        self._dead[name] = time.monotonic() + self._patience

    def look(self, *, alone: bool) -> None:
        """Remove what dead trials have left by now.

        Args:
            alone: nothing else runs: those that leave are waited for, as Ray Tune may be at its
                end, and gives them 10 s.
        """
        now = time.monotonic()
        dead = [name for name, latest in self._dead.items() if now < latest]
        if dead and now - self._looked > LOOKING:
            self._looked = now
            self._remove(dead)
        while alone and any(time.monotonic() < latest for latest in self._still().values()):
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """No trial runs any more, so that nothing of any may be left."""
        killed = [*self._dead, *self._still()]
        if killed:
            self._remove(killed, presence.PATIENCE)
            for name in killed:
                self._folder.ended(name)

    def _still(self) -> dict[str, float]:
        """Those that are not gone, and until when they may be."""
        self._leaving = {
            name: latest for name, latest in self._leaving.items() if self._folder.is_running(name)
        }
        return self._leaving

    def _remove(self, names: list[str], patience: float = 0.0) -> None:
        presence.clear_orphans(patience)
        for name in names:
            for place in Path(tempfile.gettempdir()).glob(f"{prefix(name)}*"):
                shutil.rmtree(place, ignore_errors=True)
