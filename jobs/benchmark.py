"""python jobs/benchmark.py quality --config jobs/presets/fashion.yaml

Tables about the method, each as JSON, Markdown and a picture:

  quality    what every part of the method is worth
  selection  whether what is chosen without data is what the data would choose

Runs that are done are kept in the output folder, and skipped when the command runs again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dfka_dist import commandline
from dfka_dist.benchmarks import quality, selection
from dfka_dist.loading import dump

TABLES = {"quality": quality, "selection": selection}
STEPS = {"quality": 500, "selection": 200}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    parser = commandline.parser(__doc__ or "", "default: runs/NAME-TABLE")
    parser.add_argument("what", choices=list(TABLES), help="the table to make")
    default = ", ".join(f"{name} {steps}" for name, steps in STEPS.items())
    parser.add_argument(
        "--steps",
        type=commandline.positive,
        help=f"of a run's joint phase (default: {default})",
    )
    arguments = parser.parse_args(argv)
    config = commandline.configuration(arguments)
    what, table = arguments.what, TABLES[arguments.what]
    steps = arguments.steps or STEPS[what]
    place = (arguments.output or Path("runs") / f"{config.run.name}-{what}").resolve()
    if arguments.dry_run:
        for row in table.rows(config, steps, place):
            print(f"{row.folder}: {' '.join(row.changes)}")
        return
    place.mkdir(parents=True, exist_ok=True)
    source = place / "config.yaml"
    source.write_text(dump(config), encoding="utf-8")
    made = table.table(config, source, steps, place, print)
    (place / f"{what}.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (place / f"{what}.md").write_text(table.text(made) + "\n", encoding="utf-8")
    table.draw(made, place / f"{what}.png")
    print(table.text(made))


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
