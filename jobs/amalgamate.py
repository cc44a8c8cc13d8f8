"""python jobs/amalgamate.py --config jobs/presets/digits.yaml

Make one network of several trained classifiers, without any of their training data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfka_dist import commandline, launch, results
from dfka_dist.config import RunConfig
from dfka_dist.loading import dump
from dfka_dist.models.sources import Weights, read_all_weights
from dfka_dist.models.target import DualGenerator
from dfka_dist.progress import Progress
from dfka_dist.report import MetricsLog
from dfka_dist.scoring import Data, load_data, score
from dfka_dist.teachers.placement import PlacementPlan, plan, read_nodes
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, then run, then write."""
    began = time.monotonic()
    parser = commandline.parser(__doc__ or "")
    parser.add_argument(
        "--nodes",
        type=Path,
        metavar="FILE",
        help="plan a --dry-run for these nodes: a YAML list of {name, cpus, gpus}",
    )
    arguments = parser.parse_args(argv)
    given = commandline.configuration(arguments)
    config = given.without_unheard()
    folder = commandline.output_folder(arguments, config, results.LEFT)
    # Everything a user can get wrong comes to light here, before anything is started or written.
    weights = read_all_weights(config.teachers)
    teachers = {name: t.description for name, t in load_teachers(config.teachers, weights).items()}
    DualGenerator(Branching(config, teachers).design())
    data = load_data(config)
    if arguments.dry_run:
        return _show(config, _dry_plan(arguments, config))
    planned = None if config.run.address else plan(config, launch.this_machine(config))
    with launch.cluster(config.run.address, planned) as nodes:
        placement = planned or plan(config, nodes)
        _warn(given, config)
        _run(config, commandline.emptied(folder, results.LEFT), placement, weights, data, began)


def _run(
    config: RunConfig,
    folder: Path,
    placement: PlacementPlan,
    weights: dict[str, Weights],
    data: Data,
    began: float,
) -> None:
    commandline.log_to(folder)
    configuration = dump(config)
    (folder / "resolved.yaml").write_text(configuration, encoding="utf-8")
    with Progress(name=config.run.name) as progress, MetricsLog(folder) as log:

        def on_record(record: dict[str, Any]) -> None:
            log.write(record)
            progress.update(record)

        progress.message(f"starting {len(placement.seats)} teacher servers")
        with TeacherPool(config.teachers, weights, placement, config.serving, folder.name) as pool:
            progress.message("starting the trainer")
            outcome = launch.amalgamate(config, pool.teachers, on_record)
            progress.message("scoring")
            evaluations = {
                network.name: score(data, pool.teachers, results.rebuilt(network))
                for network in outcome.networks
            }
            cpu = outcome.cpu_seconds + pool.cpu_seconds() + time.process_time()
        seconds = {"wall": round(time.monotonic() - began, 1), "cpu": round(cpu, 1)}
        found = results.result(config, pool.descriptions, outcome, evaluations, seconds)
        results.write(folder, found, outcome, log, configuration)
    _say(found, folder)


def _warn(given: RunConfig, config: RunConfig) -> None:
    heard = [teacher.name for teacher in config.teachers]
    for teacher in given.teachers:
        if teacher.name not in heard:
            what = "knows none of the labels that are wanted, and is left out"
            print(f"warning: the teacher {teacher.name} {what}", file=sys.stderr)


def _dry_plan(arguments: argparse.Namespace, config: RunConfig) -> PlacementPlan:
    if arguments.nodes:
        return plan(config, read_nodes(arguments.nodes))
    if config.run.address:
        with launch.cluster(config.run.address, None) as nodes:
            return plan(config, nodes)
    return plan(config, launch.this_machine(config))


def _show(config: RunConfig, placement: PlacementPlan) -> None:
    print(dump(config))
    print("\n".join(placement.lines()))


def _say(found: dict[str, Any], folder: Path) -> None:
    """The result in a few lines, and where to look."""
    evaluation = found["evaluation"]
    if evaluation and evaluation["target"]:
        target, teachers, kept = (
            evaluation[key]["accuracy"] for key in ("target", "teachers", "retention")
        )
        beside = f"the teachers side by side {teachers:.4f}, kept {kept:.4f}"
        print(f"{evaluation['dataset']}: top-1 {target:.4f}, {beside}")
    else:
        agreement = found["data_free"]["agreement"]
        print(f"no test data for all labels; agreement on synthesized images {agreement:.4f}")
    print(f"network: {folder / 'target_net'}\nreport:  {folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
