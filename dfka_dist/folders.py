"""Folders and files of this machine: whether they can be written, and that they appear whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def nearest(folder: Path) -> Path:
    """The folder, or what is above it and there."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def is_writable(folder: Path) -> bool:
    """Whether files could be written to the folder, or to the nearest one in which it can be
    made."""
    above = nearest(folder)
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """Where to write a file or a folder that appears at its place when it is complete.

    What is put there outlasts a machine that loses its power. If that fails, there is what was
    there before. A folder cannot take another's place at once: a
    kill just then leaves both beside it, whole, and the next one brings the older back.
    """
    part, before = (place.with_name(f"{place.name}.{what}") for what in ("part", "before"))
    _remove(part)
    _bring_back(before, place)
    try:
        yield part
        for each in [part, *part.rglob("*")]:
            if each.is_file():
                onto_the_disk(each)
        if place.is_dir():
            place.replace(before)
        part.replace(place)
    except BaseException:
        _bring_back(before, place)
        _remove(part)
        raise
    _remove(before)


def _bring_back(before: Path, place: Path) -> None:
    """What was put aside, unless something took its place; then it goes."""
    if before.exists() and not place.exists():
        before.replace(place)
    _remove(before)


def write_whole(place: Path, text: str) -> None:
    """Write a text as `whole` does.

    Raises:
        OSError: it cannot be written.
    """
    with whole(place) as part:
        part.write_text(text, encoding="utf-8")


def sha256(place: Path) -> str:
    """Of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def onto_the_disk(place: Path) -> None:
    """Have a file, and that it is there, outlast a machine that loses its power.

    Raises:
        OSError: it cannot be written.
    """
    for each in (place, place.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
