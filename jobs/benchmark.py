"""python jobs/benchmark.py quality --config jobs/presets/fashion.yaml

What every part of the method is worth: one table, as JSON, Markdown and a picture. Rows that are
done are kept in the output folder, and skipped when the command runs again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dfka_dist import commandline
from dfka_dist.benchmarks import quality
from dfka_dist.loading import dump


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows that are missing, and write the table."""
    parser = commandline.parser(__doc__ or "")
    parser.add_argument("what", choices=["quality"], help="the table to make")
    parser.add_argument(
        "--steps", type=int, default=900, help="of the joint recipe in every row (default: 900)"
    )
    arguments = parser.parse_args(argv)
    config = commandline.configuration(arguments)
    place = (arguments.output or Path("runs") / f"{config.run.name}-quality").resolve()
    if arguments.dry_run:
        for row in quality.rows(config, arguments.steps):
            print(f"{row.folder}: {' '.join(row.changes)}")
        return
    place.mkdir(parents=True, exist_ok=True)
    source = place / "config.yaml"
    source.write_text(dump(config), encoding="utf-8")
    made = quality.table(config, source, arguments.steps, place, print)
    (place / "quality.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (place / "quality.md").write_text(quality.text(made) + "\n", encoding="utf-8")
    quality.draw(made, place / "quality.png")
    print(quality.text(made))


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
