"""Where the checkpoints of a run are kept: a folder on any file system that pyarrow knows.

A checkpoint is the folder `checkpoint-STEP`, what several of them need lies in `lasting`. No file
is ever changed, and what is not on the lists of all ranks is no checkpoint: a kill at any moment
leaves those that were complete as they are.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs

from dfka_dist.errors import InputError, NotKept, RunFailed
from dfka_dist.places import UNREACHABLE, Place
from dfka_dist.training.checkpoint import LASTING, RUN, BrokenCheckpoint, Reading
from dfka_dist.training.collectives import rank_and_size, said_by_any

log = logging.getLogger(__name__)

KEY = "training.checkpoint.storage"
"""Of the configuration, which says where they are."""

_NAMED = re.compile(r"checkpoint-(\d{9})")


class FolderShelf:
    """See `ledger.Shelf`.

    Can be sent to another process.

    Args:
        uri: absolute path or `pyarrow.fs` URI of a folder, of this run alone.
        keep: how many of the newest stay.
        identity: what may not differ when the run goes on.

    Raises:
        InputError: there is no such kind of file system.
    """

    def __init__(self, uri: str, keep: int, identity: dict[str, Any] | None = None) -> None:
        self._uri, self._identity, self._keep = uri, identity or {}, keep
        self.place = Place(uri, KEY)
        self._files, self._root = self.place.files, self.place.folder
        self._desk: tempfile.TemporaryDirectory[str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderShelf, (self._uri, self._keep, self._identity)

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
        found = map(_NAMED.fullmatch, self.place.names())
        return sorted(int(match[1]) for match in found if match)

    def told(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of its run, if that can be read."""
        for step in reversed(self.steps()):
            try:
                with self._files.open_input_stream(f"{self._root}/{_name(step)}/{RUN}") as file:
                    told: dict[str, Any] = json.loads(file.read())
                    return told
            except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeError):
                continue
            except UNREACHABLE as error:
                raise self.place.unreachable(error) from None
        return None

    def begin(self, *, anew: bool) -> None:
        """Prove that checkpoints can be written.

        Args:
            anew: let all that are there go.

        Raises:
            InputError: they cannot.
        """
        if anew:
            self.clear()
        self.place.make()

    def clear(self) -> None:
        """Let all checkpoints go, and nothing else that lies there.

        Raises:
            InputError: they cannot be removed.
        """
        inside = fs.FileSelector(self._root, allow_not_found=True)
        try:
            for info in self._files.get_file_info(inside):
                if info.base_name == LASTING or _NAMED.fullmatch(info.base_name):
                    self._files.delete_dir(info.path)
        except UNREACHABLE as error:
            raise self.place.unreachable(error) from None

    def newest(self) -> Reading | None:
        """See `ledger.Shelf`; those that are broken are passed over, with a warning.

        Raises:
            RunFailed: they cannot be reached.
        """
        try:
            steps = self.steps()
        except InputError as error:
            raise RunFailed(str(error)) from None
        for step in reversed(steps):
            try:
                return self._taken_down(step)
            except BrokenCheckpoint as error:
                log.warning("passing over a checkpoint: %s", error)
        return None

    def lasting(self) -> Path:
        """See `ledger.Shelf`."""
        return self._own / LASTING

    def close(self) -> None:
        """Let go what lies on this machine's disk on its way from or to the place."""
        if self._desk is not None:
            self._desk.cleanup()
            self._desk = None

    @property
    def _own(self) -> Path:
        if self._desk is None:
            self._desk = tempfile.TemporaryDirectory(prefix="dfka-")
        return Path(self._desk.name)

    def add(self, folder: Path, global_step: int) -> None:
        """See `ledger.Shelf`; returns when all ranks are done.

        Raises:
            NotKept: one of them could not write; on all.
        """
        there = f"{self._root}/{_name(global_step)}"

        def put() -> None:
            self._put(self.lasting(), f"{self._root}/{LASTING}")
            self._put(folder, there)

        # Of a save that was interrupted, perhaps by more workers, nothing may stay in it.
        failure = said_by_any(self._tried(lambda: self._remove(there)))
        failure = failure or said_by_any(self._tried(put))
        if failure is not None:
            if rank_and_size()[0] == 0:
                self._tried(lambda: self._files.delete_dir(there))
            raise NotKept(f"no checkpoint at step {global_step}: {failure}")
        if rank_and_size()[0] == 0:
            failure = self._tried(lambda: self._tidy(global_step))
            if failure is not None:
                log.warning("older checkpoints stay in %s: %s", self, failure)

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
        except UNREACHABLE as error:
            return f"{self} cannot be written: {self.place.plain(error)}"
        return None

    def _put(self, source: Path, place: str) -> None:
        """Move everything below a folder, its lists last."""
        files = sorted(p for p in source.rglob("*") if p.is_file())
        for path in sorted(files, key=lambda p: p.name.startswith("files-")):
            there = f"{place}/{path.relative_to(source)}"
            if self.place.is_local:
                self._files.create_dir(there.rpartition("/")[0], recursive=True)
            fs.copy_files(str(path), there, destination_filesystem=self._files)
            path.unlink()

    def _taken_down(self, step: int) -> Reading:
        """A checkpoint on this machine's disk."""
        # Apart from what is on its way there: that is moved, and this is still read.
        place = Path(self._root) if self.place.is_local else self._own / "taken"
        folder, lasting = place / _name(step), place / LASTING
        if not self.place.is_local:
            self._get(f"{self._root}/{_name(step)}", folder)
            for name in self._needed(folder):
                self._get(f"{self._root}/{LASTING}/{name}", lasting / name)
        return Reading.opened(folder, lasting)

    def _get(self, source: str, place: Path) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(source, str(place), source_filesystem=self._files)
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"{source} is not there") from error
        except UNREACHABLE as error:
            # A checkpoint that cannot be reached just now is not one to pass over.
            raise RunFailed(f"{self} cannot be read: {self.place.plain(error)}") from None

    def _needed(self, folder: Path) -> set[str]:
        try:
            lists = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("files-*.json")]
            return {_plain(name) for listed in lists for name in listed["lasting"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BrokenCheckpoint(f"{folder.name}: {error}") from error

    def _tidy(self, newest: int) -> None:
        """Older checkpoints go, later ones that were passed over too, and then what none needs any
        more."""
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self._keep :]
        for step in set(steps) - set(kept):
            self._files.delete_dir(f"{self._root}/{_name(step)}")
        needed: set[str] = set()
        for step in kept:
            needed |= self._listed(step)
        inside = fs.FileSelector(f"{self._root}/{LASTING}", allow_not_found=True)
        for info in self._files.get_file_info(inside):
            if info.base_name not in needed:
                self._files.delete_file(info.path)

    def _listed(self, step: int) -> set[str]:
        inside = fs.FileSelector(f"{self._root}/{_name(step)}")
        names: set[str] = set()
        for info in self._files.get_file_info(inside):
            if info.base_name.startswith("files-"):
                with self._files.open_input_stream(info.path) as file:
                    names |= set(json.loads(file.read())["lasting"])
        return names


def _name(step: int) -> str:
    return f"checkpoint-{step:09}"


def _plain(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name} lies outside")
    return name
