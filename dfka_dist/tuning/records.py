"""What trials leave in the folder of a sweep, so that it can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist import results
from dfka_dist.errors import NoRoom, NotKept, RunFailed, TeacherUnavailable
from dfka_dist.folders import whole, write_whole
from dfka_dist.models.target import TargetNet
from dfka_dist.places import UNREACHABLE, Place
from dfka_dist.training.fence import Fence
from dfka_dist.training.outcome import Outcome

TRIALS = "trials"
"""Folder of all trials in the folder of a sweep."""
_RECORD, _SHARE, _WHY = "trial.json", "share.safetensors", "why.txt"
_WARNINGS = "warnings.txt"
DIED = "its process died"
_PASSING = (NoRoom, TeacherUnavailable, NotKept)
_HOUSED, _RUNNING, _STOP, _ELAPSED = "housed", "running", "stop-", "elapsed"

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial that is over."""

    number: int
    """0, 1, 2, ... in the order in which trials ended."""
    name: str
    """Of its folder."""
    point: dict[str, Any]
    status: Status
    """stopped: it was behind."""
    pilot: bool
    agreements: list[float] = field(default_factory=list)
    """At its moments, with the teachers on the sweep's probe set; a pilot's only at its end, when
    there is one."""
    judges: int = 0
    """Pilots whose images a pilot was judged on."""
    seconds: float = 0.0
    ended: float = 0.0
    """Seconds since the sweep began, all starts together."""
    why: str | None = None
    """It failed."""

    @property
    def agreement(self) -> float | None:
        """The last."""
        return self.agreements[-1] if self.agreements else None

    def judged(self, agreement: float, judges: int) -> TrialRecord:
        """The same of a pilot that was judged."""
        return replace(self, agreements=[agreement], judges=judges)


class Folder:
    """The trials of a sweep.

    Args:
        place: of the sweep.
        own: mark of the start that this is of; see `begin`.
    """

    def __init__(self, place: Path, own: str | None = None) -> None:
        self._place = place / TRIALS
        self._fence = Fence(Place(str(place.resolve()), "--output"), own)

    def begin(self) -> None:
        """Be the newest start of the sweep from now on, and remove what trials have left that did
        not end.

        Raises:
            OSError: the folder cannot be written.
        """
        self._place.mkdir(parents=True, exist_ok=True)
        self._fence.begin()
        for place in self._place.iterdir():
            if place.is_dir() and _record(place) is None:
                shutil.rmtree(place, ignore_errors=True)
            elif place.name.startswith(_STOP):
                place.unlink(missing_ok=True)

    @property
    def own(self) -> str | None:
        """Mark of this start."""
        return self._fence.own

    def crossed(self) -> str | None:
        """What is wrong, if there is a newer start, as far as that can be seen: nothing more may
        be written."""
        try:
            return self._fence.crossed()
        except UNREACHABLE:
            return None

    def refuse_another_start(self) -> None:
        """Make sure that there is none.

        Raises:
            RunFailed: there is one.
        """
        crossed = self.crossed()
        if crossed is not None:
            raise RunFailed(crossed)

    def records(self) -> list[TrialRecord]:
        """Of all trials that are over, in the order in which they ended."""
        found = filter(None, map(_record, self._place.glob("*")))
        return sorted(found, key=lambda each: each.number)

    def write(self, record: TrialRecord) -> None:
        """Add a record, or replace it: whole, or not at all."""
        place = self._place / record.name
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / _RECORD, json.dumps(asdict(record), indent=2) + "\n")

    @property
    def elapsed(self) -> float:
        """Seconds that the sweep has taken, all starts together, as far as they were kept."""
        ended = max((record.ended for record in self.records()), default=0.0)
        try:
            return max(float((self._place / _ELAPSED).read_text("utf-8")), ended)
        except (OSError, ValueError):
            return ended

    def keep_elapsed(self, seconds: float) -> None:
        """See `elapsed`; where it cannot be written, what was there before counts."""
        with suppress(OSError):
            write_whole(self._place / _ELAPSED, f"{seconds:.1f}\n")

    def forget(self, records: Sequence[TrialRecord]) -> None:
        """As if these trials had never been."""
        for record in records:
            shutil.rmtree(self._place / record.name)

    @staticmethod
    def parts(name: str) -> list[str]:
        """What a sweep needs to go on of a trial that is over, in the sweep's folder; its record
        is the last, and the time that all took behind that."""
        own = [f"{TRIALS}/{name}/{part}" for part in ("target_net", _SHARE, _RECORD)]
        return [*own, f"{TRIALS}/{_ELAPSED}"]

    def stop(self) -> None:
        """Tell all trials of this start to stop: their actors hear nothing while they wait to be
        judged."""
        self._place.mkdir(parents=True, exist_ok=True)
        self._stop.touch()

    @property
    def is_stopped(self) -> bool:
        """Whether trials are to stop."""
        return self._stop.exists()

    @property
    def _stop(self) -> Path:
        return self._place / f"{_STOP}{self._fence.own or ''}"

    def leave(self, name: str, outcome: Outcome) -> None:
        """What is needed of a finished trial: its target, and its part of a probe set.

        Raises:
            NotKept: it cannot be written.
        """
        place = self._place / name
        assert outcome.share is not None
        images, homes = outcome.share
        try:
            with whole(place / "target_net") as part:
                results.rebuilt(outcome.network).save_pretrained(part)
            save_file({"images": images, "homes": homes}, place / _SHARE)
        except (OSError, SafetensorError) as error:
            raise NotKept(f"{place} cannot be written: {error}") from error

    def warn(self, name: str, line: str) -> None:
        """What a trial that goes on says to whoever watches the sweep; where it cannot be written,
        nobody hears it, and the trial goes on."""
        place = self._place / name
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            with (place / _WARNINGS).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def warnings(self, name: str) -> list[str]:
        """See `warn`; all so far."""
        place = self._place / name / _WARNINGS
        return place.read_text("utf-8").splitlines() if place.exists() else []

    def failed(self, name: str, error: Exception) -> None:
        """Why a trial did not come to its end; Tune itself keeps no more than a trace."""
        place = self._place / name
        place.mkdir(parents=True, exist_ok=True)
        line = " ".join(str(error).split())
        (place / _WHY).write_text(f"{type(error).__name__}: {line[:500]}", encoding="utf-8")

    def why(self, name: str) -> str:
        """See `failed`."""
        place = self._place / name / _WHY
        return place.read_text("utf-8") if place.exists() else DIED

    def began(self, name: str) -> None:
        """A trial holds what it may have to let go."""
        self._mark(name, _RUNNING)

    def ended(self, name: str) -> None:
        """It has let it go."""
        (self._place / name / _RUNNING).unlink(missing_ok=True)

    def is_running(self, name: str) -> bool:
        """Whether it has begun and not ended."""
        return (self._place / name / _RUNNING).exists()

    def housed(self, name: str) -> None:
        """A trial has workers that compute."""
        self._mark(name, _HOUSED)

    def is_housed(self, name: str) -> bool:
        """See `housed`."""
        return (self._place / name / _HOUSED).exists()

    def _mark(self, name: str, mark: str) -> None:
        place = self._place / name
        place.mkdir(parents=True, exist_ok=True)
        (place / mark).touch()

    def drop(self, name: str) -> None:
        """Remove what a trial has left that is no result."""
        shutil.rmtree(self._place / name, ignore_errors=True)

    def target(self, record: TrialRecord, code: Sequence[str]) -> TargetNet:
        """Of a finished trial, in eval mode.

        Args:
            code: modules that its parts may come from.
        """
        place = self._place / record.name / "target_net"
        return TargetNet.from_pretrained(place, code).eval()

    def share(self, record: TrialRecord) -> tuple[Tensor, Tensor]:
        """See `ProbeSet.share`."""
        found = load_file(self._place / record.name / _SHARE)
        return found["images"], found["homes"]


def _record(place: Path) -> TrialRecord | None:
    """Of a trial, by its folder, which alone says its name: another one in the file could lead out
    of the sweep. None if it did not end, as far as can be read."""
    try:
        told = TrialRecord(**json.loads((place / _RECORD).read_text("utf-8")))
        return replace(told, name=place.name)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
        return None


def is_homeless(why: str) -> bool:
    """Whether a trial ended because it found no room."""
    return why.startswith(f"{NoRoom.__name__}: ")


def is_passing(why: str) -> bool:
    """Whether a trial ended for something that is not its own: another time the same may end
    well."""
    return why.startswith(tuple(f"{error.__name__}: " for error in _PASSING))


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """`trials.parquet`: one row a trial; what is not of one kind in a column is written as JSON."""
    columns = {key: _alike([row[key] for row in rows]) for key in rows[0]}
    pq.write_table(pa.table(columns), path)


def _alike(values: list[Any]) -> list[Any]:
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    return values if len(kinds) < 2 else [json.dumps(value) for value in values]
