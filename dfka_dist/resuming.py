"""Whether a run goes on from its checkpoints, begins anew, or is another one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import parse, plain
from dfka_dist.models.sources import Weights
from dfka_dist.places import Place, inside
from dfka_dist.training.identity import first_difference
from dfka_dist.training.shelf import KEY, FolderShelf

log = logging.getLogger(__name__)

ARCHIVE = "training.archive"
EVERY = "training.checkpoint.every"
ANEW = "or --overwrite and not --resume"
"""What somebody says who wants to lose what there is."""
OWN = "checkpoints"
"""Folder of the checkpoints in the output folder, where no storage is given."""
FREE = (
    "archive",
    "checkpoint",
    "max_failures",
    "node_labels",
    "quiet_timeout",
    "report_every",
    "start_timeout",
    "threads",
    "timeout",
    "worker_cpus",
    "worker_gpus",
    "workers",
)
"""What may change under `training` from one start of a run to the next."""


def identity(
    config: RunConfig, weights: Mapping[str, Weights], read: Mapping[str, Any]
) -> dict[str, Any]:
    """What may not differ between two starts of the same run; it holds no secret, and no place: the
    same files may lie elsewhere by now.

    Args:
        read: what tells the files apart that images and the start are read from.
    """
    whole = config.model_dump(mode="json")
    serving, training = whole["serving"], whole["training"]
    own = {key: value for key, value in training.items() if key not in FREE}
    images = training["images"] and {"source": _named(training["images"]), **read["images"]}
    teachers = [
        {key: value for key, value in teacher.items() if key != "weights"}
        | {"source": _named(teacher["source"]), "sha256": weights[teacher["name"]].sha256}
        for teacher in whole["teachers"]
    ]
    return {
        "run": {"seed": config.run.seed},
        "teachers": teachers,
        "target": whole["target"] | {"start": read["start"]},
        "generator": whole["generator"],
        "losses": whole["losses"],
        "training": own | {"images": images},
        "serving": {key: serving[key] for key in ("precision", "wire")},
    }


def _named(source: str) -> str:
    """Its kind, and its name without where that lies."""
    kind, colon, place = source.partition(":")
    return f"{kind}{colon}{PurePosixPath(place.partition('?')[0]).name}"


def place_of(config: RunConfig, folder: Path, own: dict[str, Any]) -> FolderShelf:
    """Where the run's checkpoints lie, or would if it kept any.

    Args:
        folder: of its results.
        own: its identity.

    Raises:
        InputError: there is no such kind of storage.
    """
    wanted = config.training.checkpoint
    own_folder, name = str(folder / OWN), config.run.name
    uri = own_folder if wanted.storage is None else inside(wanted.storage, name)
    return FolderShelf(uri, wanted.keep, own)


def reachable(shelf: FolderShelf | None, config: RunConfig, nodes: int) -> FolderShelf | None:
    """The shelf of a run that keeps checkpoints, if the workers reach it wherever they are; without
    a storage of its own, a run on several nodes keeps none.

    Raises:
        InputError: a storage is given that they do not reach, or an archive.
    """
    wanted = config.training.checkpoint
    if nodes == 1 or wanted.shared:
        return shelf
    if config.training.archive is not None:
        _refuse_apart(Place(config.training.archive, ARCHIVE), ARCHIVE, nodes)
    if shelf is not None and shelf.place.is_local and wanted.storage is None:
        log.warning("no checkpoints: %d nodes share no disk that is known (%s)", nodes, KEY)
        return None
    if shelf is not None:
        _refuse_apart(shelf.place, KEY, nodes)
    return shelf


def _refuse_apart(place: Place, key: str, nodes: int) -> None:
    if place.is_local:
        what = f"{place} is a path on each of {nodes} nodes for itself"
        raise InputError(key, what, "a pyarrow.fs URI, or training.checkpoint.shared: true")


def refuse_another(shelf: FolderShelf, own: Mapping[str, Any]) -> None:
    """Make sure that the checkpoints that are there are of this run.

    Raises:
        InputError: naming the first difference.
    """
    told = shelf.told()
    if told is None:
        return
    refuse_difference(told["identity"], own)


def refuse_difference(before: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Make sure that two identities are the same.

    Raises:
        InputError: naming the first difference.
    """
    difference = first_difference(before, own)
    if difference is not None:
        remedy = "the run as it was, or another run.name and --output"
        raise InputError(difference.key, str(difference), remedy)


def refuse_lost(shelf: FolderShelf, folder: Path) -> None:
    """Make sure that a run that has kept checkpoints, going by what it left in its output folder,
    finds one.

    One that was killed before its first, or kept none, begins anew.

    Raises:
        InputError: there is none.
    """
    step, every = _told_last(folder), _kept_every(folder)
    if every and step > every and not shelf.steps():
        what = f"{shelf} holds no checkpoint, and the run in {folder} has come to step {step}"
        raise InputError(KEY, what, f"the storage and run.name that it had, {ANEW}")


def refuse_idle(there: FolderShelf) -> None:
    """Make sure that there are no checkpoints where a run goes on that is to keep none.

    Raises:
        InputError: there are some, and it would begin anew.
    """
    if there.steps():
        what = f"is 0, and {there} holds checkpoints that the run would not go on from"
        raise InputError(EVERY, what, f"more than 0, {ANEW}")


def refuse_out_of_reach(there: FolderShelf, steps: Sequence[int], nodes: int) -> None:
    """Make sure that there are no checkpoints where the workers do not reach them.

    Args:
        steps: of those that there are.
        nodes: that workers and the driver are on.

    Raises:
        InputError: there are some, and the run would begin anew.
    """
    if steps:
        what = f"{there} holds checkpoints, and is a path on each of {nodes} nodes for itself"
        remedy = "a pyarrow.fs URI to which they were copied, training.checkpoint.shared: true"
        raise InputError(KEY, what, f"{remedy}, {ANEW}")


def _told_last(folder: Path) -> int:
    """The last step that a run has told of in its output folder; 0 if it has told of none."""
    try:
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return 0
    for line in reversed(lines[-2:]):
        with suppress(ValueError, LookupError, TypeError):  # it was killed as it wrote
            return int(json.loads(line)["global_step"])
    return 0


def _kept_every(folder: Path) -> int:
    """Steps from one checkpoint to the next of the run that an output folder holds; 0 for none."""
    try:
        before = parse(plain((folder / "resolved.yaml").read_text("utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, InputError):
        return 0
    return before.training.checkpoint.every


def refuse_existing(shelf: FolderShelf) -> None:
    """Make sure that there are no checkpoints of an earlier run.

    Raises:
        InputError: there are some.
    """
    if shelf.steps():
        what = f"{shelf} already holds checkpoints"
        raise InputError(KEY, what, "--resume, --overwrite, or another run.name")
