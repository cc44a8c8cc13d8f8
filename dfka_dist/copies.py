"""A copy of a finished output folder in the run's storage, where somebody on another machine finds
it: Ray removes the folder in which a submitted job ran."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dfka_dist.config import RunConfig
from dfka_dist.errors import RunFailed
from dfka_dist.places import UNREACHABLE, Place, inside

log = logging.getLogger(__name__)

KEY = "training.checkpoint.storage"
FOLDER = "result"
"""In the folder that a run, or a sweep, has in its storage."""


class Copy:
    """Of what a program leaves, elsewhere.

    Args:
        place: that of the copy, and of nothing else; None if there is to be none.
        folder: of the program's output.
        names: of what it leaves there; the last one says that all else is there.
    """

    def __init__(self, place: Place | None, folder: Path, names: Sequence[str]) -> None:
        self._place, self._folder, self._names = place, folder, names

    def __str__(self) -> str:
        return str(self._place)

    def is_whole(self) -> bool:
        """Whether it is there already.

        Raises:
            InputError: the place cannot be reached.
        """
        return self._place is not None and self._names[-1] in self._place.names()

    def text(self, name: str) -> str | None:
        """What a file of it says; None if it is not there.

        Raises:
            InputError: the place cannot be reached.
        """
        if self._place is None or name not in self._place.names():
            return None
        try:
            with self._place.open(name) as file:
                return str(file.read().decode("utf-8", errors="replace"))
        except UNREACHABLE as error:
            raise self._place.unreachable(error, name) from None

    def reopen(self) -> None:
        """Let go what says that it is whole, and nothing else.

        Raises:
            InputError: it cannot be removed.
        """
        if self._place is None or not self.is_whole():
            return
        try:
            self._place.remove(self._names[-1])
        except UNREACHABLE as error:
            raise self._place.unreachable(error) from None

    def add(self, *names: str) -> None:
        """Copy a part before all is there.

        Raises:
            RunFailed: it cannot be written.
        """
        if self._place is None:
            return
        try:
            for name in names:
                self._place.put(self._folder, name)
        except UNREACHABLE as error:
            raise RunFailed(f"{self} cannot be written: {self._place.plain(error)}") from error

    def drop(self, name: str) -> None:
        """Remove a folder of it, if it is there.

        Raises:
            RunFailed: it cannot be removed.
        """
        if self._place is None:
            return
        try:
            self._place.drop(name)
        except UNREACHABLE as error:
            raise RunFailed(f"{self} cannot be written: {self._place.plain(error)}") from error

    def fetch(self, name: str) -> bool:
        """Bring a folder of it back, whole or not at all; whether it was there.

        Raises:
            InputError: it cannot be read, or not be written here.
        """
        if self._place is None or name not in self._place.names():
            return False
        try:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".dfka-") as part:
                self._place.fetch(Path(part), name)
                (Path(part) / name).rename(self._folder / name)
        except UNREACHABLE as error:
            raise self._place.unreachable(error, name) from None
        return True

    def refuse_existing(self) -> None:
        """Make sure that there is none.

        Raises:
            InputError: there is one, or the place cannot be reached.
        """
        if self._place is not None and self.is_whole():
            what = "already holds what an earlier run has left"
            raise self._place.error(what, "--resume, --overwrite, or another run.name")

    def clear(self) -> None:
        """Let it go.

        Raises:
            InputError: it cannot be removed.
        """
        if self._place is None:
            return
        try:
            if self._place.exists():
                self._place.files.delete_dir(self._place.folder)
        except UNREACHABLE as error:
            raise self._place.unreachable(error) from None

    def make(self) -> list[str]:
        """Copy everything; a line that says so, if there is anything to say.

        Raises:
            RunFailed: it cannot be written.
        """
        if self._place is None:
            return []
        try:
            for name in self._names:
                self._place.put(self._folder, name)
        except UNREACHABLE as error:
            why = f"{self} cannot be written: {self._place.plain(error)}"
            raise RunFailed(f"the result is in {self._folder} alone: {why}") from error
        log.info("copied %s to %s", self._folder, self)
        return [f"copied:  {self}"]


def copy_of(config: RunConfig, name: str, folder: Path, names: Sequence[str]) -> Copy:
    """Where a run has a storage that others reach, and its output folder is not in it.

    Args:
        name: of its folder in the storage.
        folder, names: see `Copy`.

    Raises:
        InputError: there is no such kind of storage.
    """
    kept = config.training.checkpoint
    if kept.storage is None:
        return Copy(None, folder, names)
    storage = Place(kept.storage, KEY)
    if storage.is_local and (not kept.shared or folder.is_relative_to(storage.folder)):
        return Copy(None, folder, names)
    return Copy(Place(inside(inside(kept.storage, name), FOLDER), KEY), folder, names)
