"""Files of a checkpoint on their way between this machine's disk and a place."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pyarrow import fs

from dfka_dist.folders import onto_the_disk
from dfka_dist.places import Place
from dfka_dist.training.lists import LASTING, RUN, BrokenCheckpoint, Lists, list_of


def raw(place: Place, folder: str, name: str) -> bytes:
    """What a small file in a folder of a place holds.

    Raises:
        OSError, pyarrow.ArrowException, ValueError: it is not there, or cannot be reached.
    """
    with place.files.open_input_stream(f"{place.folder}/{folder}/{name}") as file:
        held: bytes = file.read()
        return held


def put(source: Path, place: Place, folder: str) -> None:
    """Move everything below a folder to one of a place, its lists last: on a disk, when all that is
    on them has arrived there.

    Raises:
        OSError, pyarrow.ArrowException, ValueError: the place cannot be written.
    """
    files = sorted(p for p in source.rglob("*") if p.is_file())
    for path in sorted(files, key=lambda p: p.name.startswith("files-")):
        there = f"{place.folder}/{folder}/{path.relative_to(source)}"
        if place.is_local:
            place.files.create_dir(there.rpartition("/")[0], recursive=True)
        fs.copy_files(str(path), there, destination_filesystem=place.files)
        if place.is_local:
            onto_the_disk(Path(there))
        path.unlink()


def fetch(place: Place, name: str, target: Path, rank: int, size: int) -> None:
    """Copy what a rank, one of so many, reads of a checkpoint, and nothing that is on no list.

    Args:
        name: of its folder.
        target: where that folder, and that of what lasts, are to be.

    Raises:
        BrokenCheckpoint: something is not there.
        OSError, pyarrow.ArrowException, ValueError: the place cannot be reached, or there is no
            room.
    """
    lists = Lists.read(partial(raw, place, name))
    needed = lists.needed(rank, size)
    files = {RUN, *map(list_of, range(len(lists.parts))), *needed.files}
    own = [*(f"{name}/{each}" for each in files), *(f"{LASTING}/{n}" for n in needed.lasting)]
    for each in own:
        there = target / each
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.copy_files(f"{place.folder}/{each}", str(there), source_filesystem=place.files)
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"{each} is not there") from error
