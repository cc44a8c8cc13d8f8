"""A checkpoint as files: what each worker writes of it, and whether what lies there is whole.

    run.json              where the run is; written by rank 0
    files-RANK.json       size and sha256 of everything else that a rank wrote, its last file
    NAME/...              what is held under that name
    lasting/...           beside all checkpoints: files that several of them need

A checkpoint is complete when every rank's list is there and every file on it is as the list says.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist.errors import RunFailed

RUN = "run.json"
LASTING = "lasting"

State = dict[str, Tensor]
Told = dict[str, Any]
"""Size and sha256 of a file."""


class BrokenCheckpoint(RunFailed):
    """A checkpoint is not what was written."""


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

    def under(self, name: str) -> Path:
        """The folder of what is held under a name."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def outlasting(self, name: str, make: Callable[[], State]) -> None:
        """Write a file that later checkpoints need as it is, unless an earlier one has."""
        place = self.lasting / f"{name}.safetensors"
        if place.name not in self.told:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_state(place, make())
            self.told[place.name] = _told(place)
        self.needed.append(place.name)

    def close(self, run: dict[str, Any]) -> None:
        """List what this rank wrote; rank 0 says where the run is."""
        if self.rank == 0:
            write_json(self.folder / RUN, run | {"workers": self.size})
        listed = {
            "files": {str(p.relative_to(self.folder)): _told(p) for p in _files(self.folder)},
            "lasting": {name: self.told[name] for name in self.needed},
        }
        write_json(self.folder / f"files-{self.rank}.json", listed)


@dataclass(frozen=True)
class Reading:
    """A checkpoint that is whole.

    Args:
        folder, lasting: see `Writing`.
    """

    folder: Path
    lasting: Path
    run: dict[str, Any]
    told: dict[str, Told]
    """Of the lasting files that belong to it."""

    @classmethod
    def opened(cls, folder: Path, lasting: Path) -> Reading:
        """A checkpoint, every file of which was looked at.

        Raises:
            BrokenCheckpoint: a file is missing, or not what was written.
        """
        try:
            run = read_json(folder / RUN)
            told: dict[str, Told] = {}
            for rank in range(int(run["workers"])):
                listed = read_json(folder / f"files-{rank}.json")
                told |= listed["lasting"]
                for place, files in ((folder, "files"), (lasting, "lasting")):
                    for name, each in listed[files].items():
                        _refuse_other(_inside(place, name), each)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BrokenCheckpoint(f"{folder.name}: {error}") from error
        return cls(folder, lasting, run, told)

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
    """Tensors as a safetensors file."""
    save_file({key: value.detach().contiguous().cpu() for key, value in state.items()}, place)


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
    with place.open("rb") as file:
        return {
            "bytes": place.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _inside(folder: Path, name: str) -> Path:
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside")
    return place


def _refuse_other(place: Path, told: Told) -> None:
    if place.stat().st_size != told["bytes"] or _told(place) != told:
        raise ValueError(f"{place.name} is not what was written")
