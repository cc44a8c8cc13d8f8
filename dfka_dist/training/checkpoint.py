"""A checkpoint as files: what each worker writes of it, and whether what lies there is whole.

    run.json              where the run is; written by rank 0
    files-RANK.json       size and sha256 of everything else that a rank wrote, its last file
    NAME/...              what is held under that name
    lasting/...           beside all checkpoints: files that several of them need

A checkpoint is complete when every rank's list is there and every file on it is as the list says.
What is on no list is no part of it, and makes it another than was written.
"""

from __future__ import annotations

import errno
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist.folders import sha256
from dfka_dist.training.lists import (
    LASTING,
    RUN,
    BrokenCheckpoint,
    Lists,
    Part,
    Told,
    UnfinishedCheckpoint,
    list_of,
)

State = dict[str, Tensor]
_BROKEN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""What a disk says of what is not there; whatever else, it may not say again."""


@dataclass
class Writing:
    """A checkpoint that one rank writes its part of.

    Args:
        folder: empty or shared with other ranks, whose files have other names.
        lasting: what earlier checkpoints left for later ones; added to, never changed.
    """

    folder: Path
    lasting: Path
    rank: int
    size: int
    told: dict[str, Told]
    """Of lasting files that were written before; those that are written now come to it."""
    needed: list[str] = field(default_factory=list)
    """Names of lasting files that belong to this checkpoint too."""
    _own: dict[str, list[str]] = field(default_factory=lambda: {"files": [], LASTING: []})

    def under(self, name: str) -> Path:
        """The folder of what is held under a name."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def claim(self, *places: Path) -> None:
        """No other rank reads these files that were written, while there are as many ranks."""
        self._own["files"] += [self._name(place) for place in places]

    def outlasting(self, name: str, make: Callable[[], State], *, claimed: bool = False) -> None:
        """Write a file that later checkpoints need as it is, unless an earlier one has.

        Args:
            claimed: see `claim`.
        """
        place = self.lasting / f"{name}.safetensors"
        if place.name not in self.told:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_state(place, make())
            self.told[place.name] = _told(place)
        self.needed.append(place.name)
        if claimed:
            self._own[LASTING].append(place.name)

    def close(self, run: dict[str, Any]) -> None:
        """List what this rank wrote; rank 0 says where the run is."""
        if self.rank == 0:
            write_json(self.folder / RUN, run | {"workers": self.size})
        listed = {
            "files": {self._name(p): _told(p) for p in _files(self.folder)},
            LASTING: {name: self.told[name] for name in self.needed},
            "own": self._own,
        }
        write_json(self.folder / list_of(self.rank), listed)

    def _name(self, place: Path) -> str:
        return place.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class Reading:
    """A checkpoint that is whole.

    Args:
        folder, lasting: see `Writing`.
        desk: folder on this machine's disk, for what is made of it on the way.
    """

    folder: Path
    lasting: Path
    run: dict[str, Any]
    told: dict[str, Told]
    """Of the lasting files that belong to it."""
    desk: Path

    @classmethod
    def opened(
        cls, folder: Path, lasting: Path, rank: int = 0, size: int = 1, desk: Path | None = None
    ) -> Reading:
        """A checkpoint, every file of which that this rank reads was looked at.

        Args:
            rank: of the reader.
            size: how many read; other ranks look at what they read.
            desk: see `Reading`.

        Raises:
            BrokenCheckpoint: a file is missing, or not what was written, or on no list.
            OSError: one cannot be read just now.
        """
        try:
            lists = Lists.read(lambda name: (folder / name).read_bytes())
            needed = lists.needed(rank, size)
            _refuse_strangers(folder, lists)
            _refuse_others(folder, lasting, needed)
        except UnfinishedCheckpoint as error:
            raise UnfinishedCheckpoint(f"{folder.name}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, BrokenCheckpoint) as error:
            if isinstance(error, OSError) and error.errno not in _BROKEN:
                raise
            raise BrokenCheckpoint(f"{folder.name}: {error}") from error
        return cls(folder, lasting, lists.run, needed.lasting, desk or Path(tempfile.gettempdir()))

    @property
    def workers(self) -> int:
        """That wrote it."""
        return int(self.run["workers"])

    def holds(self, name: str) -> bool:
        """Whether something was held under a name."""
        return (self.folder / name).is_dir()

    def outlasting(self, name: str) -> State:
        """What `Writing.outlasting` wrote."""
        return read_state(self.lasting / f"{name}.safetensors")


def refuse_code(folder: Path, harmless: Sequence[type]) -> None:
    """Make sure that the pickles in a folder make nothing but tensors, plain values, and objects of
    harmless classes.

    Raises:
        BrokenCheckpoint: one names something else.
    """
    for place in sorted(folder.rglob("*.pt")):
        try:
            with torch.serialization.safe_globals(list(harmless)):
                torch.load(place, weights_only=True, mmap=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BrokenCheckpoint(f"{place.name} is not what DeepSpeed writes: {reason}") from None


def write_state(place: Path, state: State) -> None:
    """Tensors as a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    own = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    try:
        save_file(own, place)
    except SafetensorError as error:  # which is none
        raise OSError(f"{place.name}: {error}") from error


def read_state(place: Path) -> State:
    """The inverse of `write_state`."""
    state: State = load_file(place)
    return state


def under(state: State, prefix: str) -> State:
    """The part of a state below a name."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def write_json(place: Path, value: dict[str, Any]) -> None:
    """A mapping as a JSON file."""
    place.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(place: Path) -> Any:
    """The inverse of `write_json`."""
    return json.loads(place.read_text(encoding="utf-8"))


def _files(folder: Path) -> Iterator[Path]:
    return (place for place in sorted(folder.rglob("*")) if place.is_file())


def _told(place: Path) -> Told:
    return {"bytes": place.stat().st_size, "sha256": sha256(place)}


def _refuse_strangers(folder: Path, lists: Lists) -> None:
    """DeepSpeed looks for its files by patterns: none may be there that nobody wrote."""
    known = lists.names
    for place in folder.rglob("*"):
        name = place.relative_to(folder).as_posix()
        if name not in known and (place.is_symlink() or not place.is_dir()):
            raise ValueError(f"{name} is on no list")


def _refuse_others(folder: Path, lasting: Path, part: Part) -> None:
    for place, files in ((folder, part.files), (lasting, part.lasting)):
        for name, told in files.items():
            own = _inside(place, name)
            if own.stat().st_size != told["bytes"] or _told(own) != told:
                raise ValueError(f"{own.name} is not what was written")


def _inside(folder: Path, name: str) -> Path:
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside")
    return place
