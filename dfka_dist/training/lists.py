"""What the ranks that wrote a checkpoint say of its files, in one list each.

files      size and sha256 of everything that a rank wrote, its list apart
lasting    the same of the lasting files that its part needs
own        those of both that no other rank reads, while there are as many as wrote
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dfka_dist.errors import RunFailed

RUN = "run.json"
LASTING = "lasting"

Told = dict[str, Any]
"""Size and sha256 of a file."""


class BrokenCheckpoint(RunFailed):
    """A checkpoint is not what was written."""


class UnfinishedCheckpoint(BrokenCheckpoint):
    """A list is not there: it never was a checkpoint, as far as can be seen."""


@dataclass(frozen=True)
class Part:
    """Of a checkpoint: files in its folder, and lasting ones, by their names."""

    files: dict[str, Told]
    lasting: dict[str, Told]

    @classmethod
    def joined(cls, parts: Iterable[Part]) -> Part:
        """All of several."""
        whole = cls({}, {})
        for part in parts:
            whole.files.update(part.files)
            whole.lasting.update(part.lasting)
        return whole

    def without(self, names: Mapping[str, Iterable[str]]) -> Part:
        """All but some; names under `files` and `lasting`."""
        left = [
            {name: told for name, told in own.items() if name not in set(names.get(key, ()))}
            for key, own in (("files", self.files), (LASTING, self.lasting))
        ]
        return Part(*left)


@dataclass(frozen=True)
class Lists:
    """Those of all ranks that wrote a checkpoint, whose files nobody has looked at yet."""

    run: dict[str, Any]
    parts: list[Part]
    common: list[Part]
    """The same without what no other rank reads."""

    @classmethod
    def read(cls, read: Callable[[str], bytes]) -> Lists:
        """By the name of each.

        Raises:
            BrokenCheckpoint: one is not there, or is no list, or leads out of the folder.
        """
        run = read_json(read, RUN)
        try:
            workers = run["workers"]
            if not isinstance(workers, int) or workers < 1:
                raise ValueError(f"{workers} workers wrote it")
            listed = [read_json(read, list_of(rank)) for rank in range(workers)]
            parts = [_part(each) for each in listed]
            common = [
                part.without(each.get("own", {})) for part, each in zip(parts, listed, strict=True)
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenCheckpoint(f"{type(error).__name__}: {error}") from error
        return cls(run, parts, common)

    @property
    def whole(self) -> Part:
        """Everything."""
        return Part.joined(self.parts)

    @property
    def names(self) -> set[str]:
        """Of all that may lie in the folder."""
        return {RUN, *map(list_of, range(len(self.parts))), *self.whole.files}

    def needed(self, rank: int, size: int) -> Part:
        """What a rank reads, one of so many."""
        if size != len(self.parts):
            return self.whole
        others = (part for each, part in enumerate(self.common) if each != rank)
        return Part.joined([*others, self.parts[rank]])


def list_of(rank: int) -> str:
    """Name of a rank's list."""
    return f"files-{rank}.json"


def read_json(read: Callable[[str], bytes], name: str) -> Any:
    """What a JSON file says.

    Raises:
        BrokenCheckpoint: it is none; `UnfinishedCheckpoint` where it is not there.
    """
    try:
        raw = read(name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UnfinishedCheckpoint(str(error)) from error
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{name}: {error}") from error


def _part(listed: Any) -> Part:
    for name in (*listed["files"], *listed[LASTING]):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\0" in name or str(place) != name:
            raise ValueError(f"{name} lies outside")
    if any("/" in name for name in listed[LASTING]):
        raise ValueError(f"a name in {LASTING} lies outside")
    return Part(dict(listed["files"]), dict(listed[LASTING]))
