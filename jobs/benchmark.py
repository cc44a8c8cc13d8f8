"""python jobs/benchmark.py quality --config jobs/presets/fashion.yaml
python jobs/benchmark.py serving

Tables about the method and about serving, each as JSON, Markdown and a picture:

  quality    what every part of the method is worth
  selection  whether what is chosen without data is what the data would choose
  search     what a sweep finds of loss weights that were spoiled on purpose
  serving    served teachers against local ones; it has teachers of its own and takes no --config

What is done is kept in the output folder, and skipped when the command runs again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dfka_dist import commandline
from dfka_dist.benchmarks import quality, search, selection
from dfka_dist.benchmarks.serving import whole as serving
from dfka_dist.errors import InputError
from dfka_dist.loading import dump

RUNS = {"quality": quality, "search": search, "selection": selection}
"""Tables that are made of whole runs."""
STEPS = {"quality": 500, "search": 400, "selection": 200}
REPETITIONS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is missing, and write the table."""
    parser = commandline.parser(__doc__ or "", "default: runs/NAME-TABLE", needs_config=False)
    parser.add_argument("what", choices=[*RUNS, "serving"], help="the table to make")
    default = ", ".join(f"{name} {steps}" for name, steps in STEPS.items())
    parser.add_argument(
        "--steps",
        type=commandline.positive,
        help=f"of a run's joint phase (default: {default})",
    )
    parser.add_argument(
        "--repetitions",
        type=commandline.positive,
        default=REPETITIONS,
        help=f"turns of everything that serving compares (default: {REPETITIONS})",
    )
    arguments = parser.parse_args(argv)
    if arguments.overwrite:
        what = "is not for tables, which keep what is done"
        raise InputError("--overwrite", what, "another --output, to begin anew")
    if arguments.what == "serving":
        _serving(arguments)
    elif arguments.config is None:
        raise InputError("--config", "is missing", f"a run, for the table {arguments.what}")
    else:
        _runs(arguments, RUNS[arguments.what])


def _runs(arguments: argparse.Namespace, table: ModuleType) -> None:
    config, what = commandline.configuration(arguments), arguments.what
    steps = arguments.steps or STEPS[what]
    place = _place(arguments, f"{config.run.name}-{what}")
    if arguments.dry_run:
        for row in table.rows(config, steps, place):
            print(f"{row.folder}: {' '.join(row.changes)}")
        return
    _made(place)
    source = place / "config.yaml"
    source.write_text(dump(config), encoding="utf-8")
    made = table.table(config, source, steps, place, print)
    _write(place, what, made, table.text, table.draw)


def _serving(arguments: argparse.Namespace) -> None:
    if arguments.config is not None or arguments.set:
        raise InputError("--config", "is not for the table serving", "nothing: it has its own")
    place = _place(arguments, "serving")
    if arguments.dry_run:
        print("\n".join(f"{name}: {title}" for name, title in serving.TITLES.items()))
        return
    _made(place)
    made = serving.table(place, arguments.repetitions, print)
    _write(place, "benchmark", made, serving.text, serving.draw)


def _place(arguments: argparse.Namespace, name: str) -> Path:
    chosen: Path = arguments.output or Path("runs") / name
    return chosen.resolve()


def _made(place: Path) -> None:
    commandline.refuse_unwritable(place)
    place.mkdir(parents=True, exist_ok=True)


def _write(
    place: Path,
    name: str,
    made: dict[str, Any],
    text: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    (place / f"{name}.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (place / f"{name}.md").write_text(text(made) + "\n", encoding="utf-8")
    draw(made, place / f"{name}.png")
    print(text(made))


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
