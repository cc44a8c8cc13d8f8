"""Which checkpoints stay in a place: the newest that are complete, and what they need."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from pyarrow import fs

from dfka_dist.places import Place
from dfka_dist.training.carrying import raw
from dfka_dist.training.fence import SETTLING
from dfka_dist.training.lists import LASTING, BrokenCheckpoint, Lists, Told

_NAMED = re.compile(r"checkpoint-(\d{9})")


def name_of(step: int) -> str:
    """Of a checkpoint's folder."""
    return f"checkpoint-{step:09}"


def steps_in(names: Iterable[str]) -> list[int]:
    """Of all checkpoints among these names, complete or not, in the order of time."""
    return sorted(int(match[1]) for match in map(_NAMED.fullmatch, names) if match)


def prune(place: Place, newest: int, keep: int, broken: Collection[int]) -> bool:
    """Older checkpoints go, also those that are not complete; later ones, which were passed over;
    and then what none needs any more.

    Args:
        newest: step of the one that was just made.
        keep: how many stay.
        broken: steps of those that were found to be so.

    Returns:
        whether the newest is complete; if not, nothing goes.

    Raises:
        OSError, pyarrow.ArrowException, InputError: the place cannot be read or written; it holds
            more than it should.
    """
    own = _seen(place, newest)
    if own is None:
        return False
    steps, kept = steps_in(place.names()), {newest: own}
    sizes = _sizes(place, LASTING)
    for step in reversed(steps):
        if len(kept) < keep and step < newest and step not in broken:
            needed = _needed(place, step, sizes)
            kept |= {} if needed is None else {step: needed}
    for step in steps:
        if step not in kept:
            place.files.delete_dir(f"{place.folder}/{name_of(step)}")
    for name in sizes.keys() - set().union(*kept.values()):
        place.files.delete_file(f"{place.folder}/{LASTING}/{name}")
    return True


def _seen(place: Place, step: int) -> set[str] | None:
    """As `_needed`; waits for a checkpoint that comes to be seen as complete."""
    until = time.monotonic() + SETTLING
    while (needed := _needed(place, step, _sizes(place, LASTING))) is None:
        if time.monotonic() > until:
            return None
        time.sleep(1.0)
    return needed


def _needed(place: Place, step: int, lasting: Mapping[str, int]) -> set[str] | None:
    """Names of lasting files that a checkpoint needs; None if it is not complete.

    Every file is there and as long as it should be: more is not asked of what was complete once.
    """
    try:
        whole = Lists.read(partial(raw, place, name_of(step))).whole
    except BrokenCheckpoint:
        return None
    complete = _fit(whole.files, _sizes(place, name_of(step))) and _fit(whole.lasting, lasting)
    return set(whole.lasting) if complete else None


def _fit(files: Mapping[str, Told], sizes: Mapping[str, int]) -> bool:
    return all(sizes.get(name) == told["bytes"] for name, told in files.items())


def _sizes(place: Place, name: str) -> dict[str, int]:
    """Of all files below a folder, by their names there."""
    folder = f"{place.folder}/{name}"
    inside = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    found = place.files.get_file_info(inside)
    return {
        info.path.removeprefix(f"{folder}/"): info.size
        for info in found
        if info.type == fs.FileType.File
    }
