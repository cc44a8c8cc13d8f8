"""What of a sweep lies in its storage: trials as they end, and everything when it is over."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dfka_dist import resuming
from dfka_dist.config import SearchSpec
from dfka_dist.copies import KEY, Copy
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.tuning.records import TRIALS, Folder, TrialRecord

log = logging.getLogger(__name__)

IDENTITY = "sweep.json"
"""What may not differ when the sweep goes on."""
RESULT = "result.json"
PAGE = "sweep.html"
"""What is written last, and says that the sweep is over."""


class Kept(Folder):
    """The trials of a sweep, each in its storage too, from where it can go on elsewhere.

    Args:
        place: of the sweep.
        copy: in the storage; a trial that cannot be written there costs a warning.
        say: called with that.
    """

    def __init__(self, place: Path, copy: Copy, say: Callable[[str], None]) -> None:
        super().__init__(place)
        self._sweep, self._copy, self._say = place, copy, say

    def __reduce__(self) -> Any:
        """Trials, which have one, write no records."""
        return Folder, (self._sweep, self.own)

    def write(self, record: TrialRecord) -> None:
        """See `Folder`."""
        super().write(record)
        self._tried(partial(self._copy.add, *self.parts(record.name)))

    def forget(self, records: Sequence[TrialRecord]) -> None:
        """See `Folder`."""
        super().forget(records)
        for record in records:
            self._tried(partial(self._copy.drop, f"{TRIALS}/{record.name}"))

    def _tried(self, act: Callable[[], None]) -> None:
        try:
            act()
        except RunFailed as error:
            log.warning("%s", error)
            self._say(f"warning: what trials leave is here alone: {error}")


def restore(folder: Path, copy: Copy) -> None:
    """Bring back the trials that are over where this machine has none.

    Raises:
        InputError: they cannot be read, or not be written here.
    """
    own = folder / TRIALS
    if Folder(folder).records():
        return
    shutil.rmtree(own, ignore_errors=True)
    if copy.fetch(TRIALS):
        log.info("trials that are over come from %s", copy)


def refuse_trials(copy: Copy) -> None:
    """Make sure that no sweep that is to begin has trials in the storage.

    Raises:
        InputError: there are some, or it cannot be reached.
    """
    if copy.text(IDENTITY) is not None:
        what = f"{copy} already holds a sweep that was cut short"
        raise InputError(KEY, what, "--resume, --overwrite, or another run.name")


def budget(spec: SearchSpec) -> dict[str, float | None]:
    """How much a sweep may spend."""
    return {"trials": spec.most, "seconds": spec.seconds}


def refuse_another_copy(copy: Copy, own: Mapping[str, Any]) -> None:
    """Make sure that what lies in the storage is of this sweep.

    Raises:
        InputError: it is not; naming the first difference.
    """
    told = _read(copy.text(IDENTITY))
    if told is not None:
        resuming.refuse_difference(told, own)


def is_over(folder: Path, spec: SearchSpec) -> bool:
    """Whether the sweep has left everything in its folder, and may spend no more than it did."""
    if not (folder / PAGE).exists():
        return False
    try:
        return not _is_more(spec, (folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return False


def is_copied(copy: Copy, spec: SearchSpec) -> bool:
    """The same of the copy.

    Raises:
        InputError: the storage cannot be reached.
    """
    return copy.is_whole() and not _is_more(spec, copy.text(RESULT))


def _is_more(spec: SearchSpec, result: str | None) -> bool:
    """Whether the sweep may go on for longer than when it wrote its result."""
    told = _read(result)
    if told is None:
        return True
    then = told.get("budget", {})
    return any(
        (math.inf if now is None else now) > (math.inf if then.get(key) is None else then[key])
        for key, now in budget(spec).items()
    )


def _read(text: str | None) -> dict[str, Any] | None:
    """What a file says; None if it is not there, or broken."""
    try:
        told = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
