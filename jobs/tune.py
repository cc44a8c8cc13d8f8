"""python jobs/tune.py --config FILE

Search the loss weights, or other numbers of a run, by what its `search` section says: many short
runs that share one pool of teachers, compared without data.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfka_dist import clusters, commandline, copies, preparing, resuming
from dfka_dist.config import RunConfig, SearchSpec
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.folders import write_whole
from dfka_dist.loading import dump
from dfka_dist.scoring import Scorer
from dfka_dist.teachers.nodes import NodeResources, read_nodes
from dfka_dist.teachers.placement import PlacementPlan
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.tuning import keeping, outcome, room
from dfka_dist.tuning.ranking import Jury
from dfka_dist.tuning.showing import Showing
from dfka_dist.tuning.space import Space
from dfka_dist.tuning.sweep import Sweep
from dfka_dist.tuning.trial import Ring

journal = logging.getLogger("dfka_dist.tune")


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, then search, then write."""
    arguments = _parser().parse_args(argv)
    commandline.refuse_misfits(arguments)
    given = commandline.configuration(arguments)
    config = given.without_unheard()
    space = Space(config)
    config = clusters.submitted(config.without_archive())
    if arguments.output is None:
        arguments.output = Path("runs") / f"{config.run.name}-sweep"
    folder = commandline.output_folder(arguments, config, outcome.LEFT)
    if config.is_teacherless:
        raise InputError("search", "compares runs by what teachers say", "teachers with weights")
    ready = preparing.prepared(config)
    for point in space.samples():
        ready.refuse_unbuildable(space.trial(point), "search")
    if arguments.nodes:  # which may reach a storage that this machine does not
        nodes = read_nodes(arguments.nodes)
        return _show(given, ready, nodes, nodes)
    own = resuming.identity(config, ready.weights, ready.read) | {"search": space.identity}
    copy = copies.copy_of(config, f"{config.run.name}-sweep", folder, outcome.COPIED)
    if arguments.resume:
        _refuse_another(folder, own)
        keeping.refuse_another_copy(copy, own)
    elif not arguments.overwrite:
        copy.refuse_existing()
        keeping.refuse_trials(copy)
    shares = None if config.run.address else clusters.this_machine(config)
    if arguments.dry_run:
        nodes = shares or _nodes(config)
        return _show(given, ready, nodes, room.own(nodes) if shares else nodes)
    if arguments.resume and _is_over(folder, copy, space.spec):
        return
    if shares is not None:
        room.concurrent(ready, room.own(shares))
    commandline.refuse_unwritable(folder)
    planned = None if shares is None else ready.plan(shares)
    with clusters.connected(config.run.address, planned) as found:
        placement = planned or ready.plan(found)
        concurrent, why = room.concurrent(ready, room.own(shares) if shares else found)
        _open(folder, copy, own, given, resumes=arguments.resume)
        journal.info("%s", why)
        _warn(given, ready, placement)
        lines = _search(space, ready, placement, folder, copy, concurrent)
    print("\n".join([*lines, *copy.make()]))


def _open(
    folder: Path, copy: copies.Copy, own: Mapping[str, Any], given: RunConfig, *, resumes: bool
) -> None:
    """Make the folder ready: what an earlier sweep left there goes, or this one goes on with it."""
    if resumes:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / keeping.PAGE).unlink(missing_ok=True)
        copy.reopen()
    else:
        commandline.emptied(folder, outcome.LEFT)
        copy.clear()
    write_whole(folder / keeping.IDENTITY, json.dumps(own))
    write_whole(folder / "resolved.yaml", dump(given))
    copy.add(keeping.IDENTITY)
    commandline.log_to(folder)
    if resumes:
        keeping.restore(folder, copy)


def _parser() -> argparse.ArgumentParser:
    parser = commandline.parser(__doc__ or "", "default: runs/NAME-sweep")
    commandline.add_nodes_and_resume(
        parser,
        "go on with the sweep in the output folder, trials that are over kept; begin if there is "
        "none",
    )
    return parser


def _refuse_another(folder: Path, own: Mapping[str, Any]) -> None:
    """Make sure that what lies in the folder is this sweep."""
    place = folder / keeping.IDENTITY
    if place.exists():
        resuming.refuse_difference(_identity(place), own)
    elif folder.exists() and any((folder / name).exists() for name in outcome.LEFT):
        raise InputError("--output", f"{folder} holds a run and no sweep", "another folder")


def _identity(place: Path) -> dict[str, Any]:
    """Of the sweep that goes on."""
    try:
        before = json.loads(place.read_text("utf-8"))
        if isinstance(before, dict):
            return before
        reason = "it is no mapping"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    remedy = "the file as the sweep wrote it, or --overwrite and not --resume"
    raise InputError("--resume", f"{place} cannot be read: {reason}", remedy)


def _is_over(folder: Path, copy: copies.Copy, spec: SearchSpec) -> bool:
    """Whether all is done; says so. A copy that is missing is made."""
    is_here, is_copied = keeping.is_over(folder, spec), keeping.is_copied(copy, spec)
    if not is_here and not is_copied:
        return False
    print(f"this sweep is over: {folder / keeping.PAGE if is_here else copy}")
    if not is_copied:
        for line in copy.make():
            print(line)
    return True


def _search(
    space: Space,
    ready: preparing.Prepared,
    placement: PlacementPlan,
    folder: Path,
    copy: copies.Copy,
    concurrent: int,
) -> list[str]:
    """The result in a few lines."""
    showing = Showing(f"{ready.config.run.name} sweep")
    trials = keeping.Kept(folder, copy, showing.message)
    trials.begin()
    with (
        showing,
        preparing.teachers(ready, placement, folder.name, showing.message) as (teachers, _),
    ):
        assert isinstance(teachers, ServedTeachers)
        jury = Jury(ready.config, teachers.exact(), trials, Scorer(ready.data, teachers.exact()))
        threads = room.threads(ready, concurrent)
        ring = Ring(space, teachers, ready.start, trials, concurrent, threads)
        with commandline.patient() as asked:
            records = Sweep(ring, jury, _told(asked, showing), showing).run()
        if not any(record.status == "finished" for record in records):
            raise RunFailed("no trial came to its end")
        showing.message("ranking all that finished, on images of all of them")
        standings = jury.rank(records)
        trials.refuse_another_start()
        found = outcome.write(folder, space, standings)
    return outcome.lines(found, folder)


def _told(asked: Callable[[], bool], showing: Showing) -> Callable[[], bool]:
    """Whether the user asked for the end; says so the first time."""
    said: list[bool] = []

    def stopping() -> bool:
        if asked() and not said:
            said.append(True)
            showing.message("stopping; a second Ctrl-C ends it at once")
        return asked()

    return stopping


def _nodes(config: RunConfig) -> list[NodeResources]:
    """Of the cluster that is there."""
    with clusters.connected(config.run.address, None) as nodes:
        return nodes


def _show(
    given: RunConfig,
    ready: preparing.Prepared,
    nodes: Sequence[NodeResources],
    counted: Sequence[NodeResources],
) -> None:
    """What would be done on these nodes, `counted` with the CPUs that trials are counted by."""
    planned, (_, why) = ready.plan(nodes), room.concurrent(ready, counted)
    print(dump(given))
    print("\n".join([*planned.lines(), why]))
    _warn(given, ready, planned)


def _warn(given: RunConfig, ready: preparing.Prepared, placement: PlacementPlan) -> None:
    for warning in preparing.warnings(given, ready, placement):
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
