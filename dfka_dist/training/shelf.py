"""Where the checkpoints of a run are kept: a folder on any file system that pyarrow knows.

A checkpoint is the folder `checkpoint-STEP`, what several of them need lies in `lasting`. No file
is ever changed, and what is not on the lists of all ranks is no checkpoint: a kill at any moment
leaves those that were complete as they are.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from dfka_dist.errors import InputError, NotKept, RunFailed
from dfka_dist.places import UNREACHABLE, Place
from dfka_dist.training.carrying import fetch, put, raw
from dfka_dist.training.checkpoint import Reading, Writing
from dfka_dist.training.collectives import gathered, rank_and_size, said_by_any
from dfka_dist.training.desk import Desk, clear_abandoned
from dfka_dist.training.fence import Fence
from dfka_dist.training.lists import (
    LASTING,
    RUN,
    BrokenCheckpoint,
    UnfinishedCheckpoint,
    read_json,
)
from dfka_dist.training.pruning import name_of, prune, steps_in

log = logging.getLogger(__name__)

KEY = "training.checkpoint.storage"
"""Of the configuration, which says where they are."""
MEND = "mend one, or begin anew with --overwrite and not --resume"


class FolderShelf:
    """See `ledger.Shelf`.

    Can be sent to another process.

    Args:
        uri: absolute path or `pyarrow.fs` URI of a folder, of this run alone.
        keep: how many of the newest stay.
        identity: what may not differ when the run goes on.
        start: mark of the start of the run that it belongs to, once that has begun.

    Raises:
        InputError: there is no such kind of file system.
    """

    def __init__(
        self,
        uri: str,
        keep: int,
        identity: dict[str, Any] | None = None,
        start: str | None = None,
    ) -> None:
        self._uri, self._identity, self._keep = uri, identity or {}, keep
        self.place = Place(uri, KEY)
        self._fence = Fence(self.place, start)
        self._files, self._root = self.place.files, self.place.folder
        self._desk: Desk | None = None
        self._broken: set[int] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderShelf, (self._uri, self._keep, self._identity, self._fence.own)

    @property
    def identity(self) -> dict[str, Any]:
        """See `ledger.Shelf`."""
        return self._identity

    def __str__(self) -> str:
        return str(self.place)

    def steps(self) -> list[int]:
        """Of all checkpoints, complete or not, in the order of time.

        Raises:
            InputError: the place cannot be listed.
        """
        return steps_in(self.place.names())

    def told(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of its run, if that can be read.

        Raises:
            InputError: the place cannot be reached.
        """
        for step in reversed(self.steps()):
            try:
                run = read_json(partial(raw, self.place, name_of(step)), RUN)
            except BrokenCheckpoint:
                continue  # whoever takes it down passes it over, with a warning
            except UNREACHABLE as error:
                raise self.place.unreachable(error) from None
            if isinstance(run, dict) and isinstance(run.get("identity"), dict):
                return run
        return None

    def begin(self, *, anew: bool) -> None:
        """Prove that checkpoints can be written, and by no earlier start of the run any more.

        Args:
            anew: let all that are there go.

        Raises:
            InputError: they cannot.
        """
        self.place.make()
        try:
            self._fence.begin()
        except UNREACHABLE as error:
            raise self.place.unwritable(error) from None
        if anew:
            self.clear()

    def refuse_another_start(self) -> None:
        """Make sure that this is still the newest start of the run, as far as that can be seen.

        Raises:
            RunFailed: it is not.
        """
        self._fence.refuse_another()

    def clear(self) -> None:
        """Let all checkpoints go, and nothing else that lies there.

        Raises:
            InputError: they cannot be removed.
        """
        inside = fs.FileSelector(self._root, allow_not_found=True)
        try:
            for info in self._files.get_file_info(inside):
                if info.base_name == LASTING or steps_in([info.base_name]):
                    self._files.delete_dir(info.path)
        except UNREACHABLE as error:
            raise self.place.unreachable(error) from None

    def newest(self) -> Reading | None:
        """See `ledger.Shelf`; those that are broken for any rank are passed over by all, with a
        warning.

        What processes of this run that are dead have left on this machine's disk is cleared away.

        Raises:
            RunFailed: they cannot be reached by one of the ranks, or there are some and none is
                whole, and the next one would remove what may be mended; or one of the ranks sees
                another place than the run began with; on all.
        """
        clear_abandoned(str(self))
        self._fence.meet()
        lost = False
        for step in reversed(self._agreed_steps()):
            reading, broken, unreachable = None, None, None
            try:
                reading = self._taken_down(step)
            except BrokenCheckpoint as error:
                broken = error
            except RunFailed as error:
                unreachable = str(error)
            _refuse(said_by_any(unreachable))
            said = said_by_any(None if broken is None else str(broken))
            if said is None:
                return reading
            was_whole = broken is None or not isinstance(broken, UnfinishedCheckpoint)
            lost = any(gathered(was_whole)) or lost
            self._broken.add(step)
            log.warning("passing over a checkpoint: %s", said)
            if not self.place.is_local:
                shutil.rmtree(self._near, ignore_errors=True)
        if lost:
            raise RunFailed(f"no checkpoint in {self} is whole: {MEND}")
        return None

    def _agreed_steps(self) -> list[int]:
        """As rank 0 sees them, lest others see less or more by now."""
        steps, unreachable = list[int](), None
        try:
            steps = self.steps() if rank_and_size()[0] == 0 else []
        except InputError as error:
            unreachable = str(error)
        _refuse(said_by_any(unreachable))
        return gathered(steps)[0]

    def desk(self) -> Path:
        """See `ledger.Shelf`."""
        if self._desk is None:
            self._desk = Desk(str(self))
        return self._desk.folder

    def close(self) -> None:
        """Let go what lies on this machine's disk on its way from or to the place."""
        if self._desk is not None:
            self._desk.close()
            self._desk = None

    def add(self, writing: Writing, global_step: int) -> None:
        """See `ledger.Shelf`; returns when all ranks are done.

        Raises:
            NotKept: one of them could not write; on all.
            RunFailed: another start of the run writes here by now; on all.
        """
        there = f"{self._root}/{name_of(global_step)}"

        def put_all() -> None:
            put(writing.lasting, self.place, LASTING)
            put(writing.folder, self.place, name_of(global_step))

        unseen = self._fence.refuse_another()
        if unseen is not None:  # whose checkpoint of this step lies there is not known
            raise NotKept(f"no checkpoint at step {global_step}: {unseen}")
        # Of a save that was interrupted, perhaps by more workers, nothing may stay in it.
        failure = said_by_any(self._tried(lambda: self._remove(there)))
        failure = failure or said_by_any(self._tried(put_all))
        if failure is not None:
            if rank_and_size()[0] == 0:
                self._tried(lambda: self._files.delete_dir(there))
            raise NotKept(f"no checkpoint at step {global_step}: {failure}")
        self._fence.refuse_another()
        self._broken.discard(global_step)
        self._prune(global_step)

    def _prune(self, newest: int) -> None:
        """Let older ones go, if the newest is seen to be there."""
        incomplete = False
        if rank_and_size()[0] == 0:

            def let_go() -> None:
                nonlocal incomplete
                incomplete = not prune(self.place, newest, self._keep, self._broken)

            failure = self._tried(let_go)
            if failure is not None:
                log.warning("older checkpoints stay in %s: %s", self, failure)
        if gathered(incomplete)[0]:
            what = f"{self} does not hold what all workers have written: do they share it?"
            raise NotKept(f"no checkpoint at step {newest}: {what}")

    def _remove(self, folder: str) -> None:
        if (
            rank_and_size()[0] == 0
            and self._files.get_file_info(folder).type != fs.FileType.NotFound
        ):
            self._files.delete_dir(folder)

    def _tried(self, write: Callable[[], None]) -> str | None:
        """Write; what kept it from being done."""
        try:
            write()
        except InputError as error:  # it cannot be listed
            return str(error)
        except UNREACHABLE as error:
            return f"{self} cannot be written: {self.place.plain(error)}"
        return None

    @property
    def _near(self) -> Path:
        """Where checkpoints can be read: at their place, or taken down from there."""
        # Apart from what is on its way there: that is moved, and this is still read.
        return Path(self._root) if self.place.is_local else self.desk() / "taken"

    def _taken_down(self, step: int) -> Reading:
        """A checkpoint on this machine's disk, as far as this rank reads it.

        Raises:
            BrokenCheckpoint: it is not what was written.
            RunFailed: it cannot be reached, or there is no room for it.
        """
        rank, size = rank_and_size()
        try:
            if not self.place.is_local:
                fetch(self.place, name_of(step), self._near, rank, size)
            folder, lasting = self._near / name_of(step), self._near / LASTING
            return Reading.opened(folder, lasting, rank, size, self.desk())
        except UNREACHABLE as error:
            # A checkpoint that cannot be reached just now is not one to pass over.
            raise RunFailed(f"{self} cannot be read: {self.place.plain(error)}") from None


def _refuse(failure: str | None) -> None:
    if failure is not None:
        raise RunFailed(failure)
