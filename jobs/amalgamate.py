"""python jobs/amalgamate.py --config jobs/presets/digits.yaml

Make one network of several trained classifiers, without any of their training data.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dfka_dist import clusters, commandline, copies, launch, preparing, results, resuming
from dfka_dist.config import RunConfig
from dfka_dist.folders import write_whole
from dfka_dist.loading import dump
from dfka_dist.progress import Progress
from dfka_dist.report import MetricsLog
from dfka_dist.scoring import Scorer
from dfka_dist.teachers.micro import in_parts
from dfka_dist.teachers.nodes import read_nodes
from dfka_dist.teachers.placement import PlacementPlan
from dfka_dist.training.desk import clear_abandoned
from dfka_dist.training.shelf import FolderShelf

DYING = 5.0
"""Seconds in which workers die that were killed."""

journal = logging.getLogger("dfka_dist.amalgamate")


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, then run, then write."""
    began = time.monotonic()
    parser = commandline.parser(__doc__ or "")
    commandline.add_nodes_and_resume(
        parser, "go on from the newest checkpoint of the run of this name; begin if there is none"
    )
    arguments = parser.parse_args(argv)
    commandline.refuse_misfits(arguments)
    given = commandline.configuration(arguments)
    config = clusters.submitted(given.without_unheard())
    folder = commandline.output_folder(arguments, config, results.LEFT)
    # Everything a user can get wrong comes to light here, before anything is started or written.
    ready = preparing.prepared(
        config.without_archive() if arguments.nodes else config, resumes=arguments.resume
    )
    if arguments.nodes:  # which may reach a storage that this machine does not
        placement = ready.plan(read_nodes(arguments.nodes))
        _show(given, placement)
        return _warn(given, ready, placement)
    there = _checkpoints(arguments, ready, folder)
    shelf = there if config.training.checkpoint.every else None
    copy = copies.copy_of(config, config.run.name, folder, results.COPIED)
    if not (arguments.resume or arguments.overwrite):
        copy.refuse_existing()
    if arguments.dry_run:
        placement = _dry_plan(ready)
        _show(given, placement)
        return _warn(given, ready, placement)
    planned = None if config.run.address else ready.plan(clusters.this_machine(ready.served))
    commandline.refuse_unwritable(folder)
    if shelf is not None:
        shelf.place.refuse_unwritable()
    if arguments.resume and _is_over(folder, copy):
        return
    if arguments.resume:
        resuming.refuse_lost(there, folder)
    if arguments.resume and shelf is None:
        resuming.refuse_idle(there)
    with _tidied(there), clusters.connected(config.run.address, planned) as nodes:
        placement = planned or ready.plan(nodes)
        shelf = resuming.reachable(shelf, config, len(nodes))
        if arguments.resume and shelf is None:
            resuming.refuse_out_of_reach(there, there.steps(), len(nodes))
        if shelf is not None:  # it may refuse, and then earlier results are to be there still
            shelf.begin(anew=not arguments.resume)
        copy.clear()  # it may fail, and then earlier results are here still
        if arguments.resume:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            _empty(folder, shelf)
        _warn(given, ready, placement)
        _run(given, ready, folder, placement, shelf, began)
    _tell(copy.make())


def _checkpoints(
    arguments: argparse.Namespace, ready: preparing.Prepared, folder: Path
) -> FolderShelf:
    """Where the run's checkpoints lie, if it keeps any: this run's, or they are to be replaced."""
    own = resuming.identity(ready.config, ready.weights, ready.read)
    there = resuming.place_of(ready.config, folder, own)
    if arguments.resume:
        resuming.refuse_another(there, own)
    elif ready.config.training.checkpoint.every and not arguments.overwrite:
        resuming.refuse_existing(there)
    return there


@contextmanager
def _tidied(there: FolderShelf) -> Iterator[None]:
    """What workers had on this machine's disk that were killed in it goes, too."""
    try:
        yield
    finally:
        clear_abandoned(str(there), DYING)


def _empty(folder: Path, shelf: FolderShelf | None) -> None:
    """Let an earlier run's results go; a shelf that lies there is empty already."""
    own = None if shelf is None else Path(shelf.place.folder)
    commandline.emptied(folder, [name for name in results.LEFT if folder / name != own])


def _is_over(folder: Path, copy: copies.Copy) -> bool:
    """Whether all is done; says so. A copy that is missing is made."""
    is_here, is_copied = results.is_over(folder), copy.is_whole()
    if not is_here and not is_copied:
        return False
    print(f"this run is over: {folder / results.RESULT if is_here else copy}")
    if not is_copied:
        _tell(copy.make())
    return True


def _run(
    given: RunConfig,
    ready: preparing.Prepared,
    folder: Path,
    placement: PlacementPlan,
    shelf: FolderShelf | None,
    began: float,
) -> None:
    commandline.log_to(folder)
    configuration = dump(given)
    write_whole(folder / "resolved.yaml", configuration)
    config = ready.config
    for line in placement.lines():
        journal.info("%s", line)
    with (
        Progress(name=config.run.name) as progress,
        MetricsLog(folder, partial(_on_warning, progress)) as log,
    ):

        def on_record(record: dict[str, Any]) -> None:
            log.write(record)
            journal.info("%(phase)s %(step)d/%(steps)d %(losses)s", record)
            progress.update(record)

        def on_word(word: str) -> None:
            journal.info("%s", word)
            progress.message(word)

        with preparing.teachers(ready, placement, folder.name, progress.message) as served:
            teachers, served_seconds = served
            progress.message("starting the trainer")
            with _stoppable(shelf, progress) as stopping:
                outcome = launch.amalgamate(
                    config,
                    teachers,
                    on_record,
                    ready.start,
                    shelf,
                    stopping,
                    partial(_on_warning, progress),
                    on_word=on_word,
                )
            progress.message("scoring")
            asked = in_parts(teachers.exact(), config.training.micro_batch)
            scorer = Scorer(ready.data, None if config.is_teacherless else asked)
            evaluations = {
                network.name: scorer.score(results.rebuilt(network)) for network in outcome.networks
            }
            cpu = outcome.cpu_seconds + served_seconds() + time.process_time()
            if shelf is not None:
                shelf.refuse_another_start()  # which writes to the same folder
        seconds = {
            "wall": round(time.monotonic() - began, 1),
            "cpu": round(cpu, 1),
            "saving": round(outcome.saving_seconds, 1),
        }
        found = results.result(given, teachers.descriptions, outcome, evaluations, seconds)
        by_label = config.training.sampled_labels
        results.write(folder, found, outcome, log, configuration, by_label=by_label)
    _say(found, folder)


def _on_warning(progress: Progress, warning: str) -> None:
    journal.warning("%s", warning)
    progress.message(f"warning: {warning}")


@contextmanager
def _stoppable(shelf: FolderShelf | None, progress: Progress) -> Iterator[Callable[[], bool]]:
    """Whether the run is to stop with a checkpoint; without any, a signal ends it at once."""
    if shelf is None:
        yield lambda: False
        return
    with commandline.patient() as asked:

        def stopping() -> bool:
            if asked():
                progress.message("stopping with a checkpoint; a second Ctrl-C ends it at once")
            return asked()

        yield stopping


def _warn(given: RunConfig, ready: preparing.Prepared, placement: PlacementPlan) -> None:
    for warning in preparing.warnings(given, ready, placement):
        print(f"warning: {warning}", file=sys.stderr)


def _dry_plan(ready: preparing.Prepared) -> PlacementPlan:
    if ready.config.run.address:
        with clusters.connected(ready.config.run.address, None) as nodes:
            return ready.plan(nodes)
    return ready.plan(clusters.this_machine(ready.served))


def _show(config: RunConfig, placement: PlacementPlan) -> None:
    print(dump(config))
    print("\n".join(placement.lines()))


def _say(found: dict[str, Any], folder: Path) -> None:
    """The result in a few lines, and where to look."""
    evaluation = found["evaluation"]
    if evaluation and evaluation["target"]:
        print(f"{evaluation['dataset']}: {_pooled(evaluation)}")
    else:
        agreement = found["data_free"]["agreement"]
        print(f"no score for all labels at once; agreement on probe images {agreement:.4f}")
        for name, row in (evaluation or {"per_teacher": {}})["per_teacher"].items():
            print(f"{name}: {_both(row, 'accuracy')}, {_both(row, 'mAP')}")
    print(f"network: {folder / 'target_net'}\nreport:  {folder / 'report.html'}")


def _pooled(evaluation: dict[str, Any]) -> str:
    key = "mAP" if evaluation["target"]["accuracy"] is None else "accuracy"
    said = f"{'top-1' if key == 'accuracy' else key} {_figure(evaluation['target'][key])}"
    if evaluation["teachers"] is None:
        return f"{said}, no teachers to be beside"
    teachers, kept = (_figure(evaluation[part][key]) for part in ("teachers", "retention"))
    return f"{said}, the teachers side by side {teachers}, kept {kept}"


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _both(row: dict[str, Any], key: str) -> str:
    target = row["target"][key]
    if target is None:
        return f"no {key}"
    if row["teacher"] is None:
        return f"{key} {target:.4f}"
    teacher, kept = (_figure(row[part][key]) for part in ("teacher", "retention"))
    return f"{key} {target:.4f} of {teacher}, kept {kept}"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
