"""Whether a sweep is over, by what lies in its folder or in the copy of that in its storage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfka_dist import resuming
from dfka_dist.config import SearchSpec
from dfka_dist.copies import Copy

IDENTITY = "sweep.json"
"""What may not differ when the sweep goes on."""
RESULT = "result.json"
PAGE = "sweep.html"
"""What is written last, and says that the sweep is over."""


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
