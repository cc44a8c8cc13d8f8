"""python jobs/evaluate.py --target-net runs/digits/target_net --config jobs/presets/digits.yaml

Score a saved network beside its teachers again; the figures are those of `result.json`. Alone where
no teacher has weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dfka_dist import commandline
from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet, remembered
from dfka_dist.scoring import ALONE, Scorer, load_data
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.micro import in_parts
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.identity import first_difference

FILE = "evaluation.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Load, score, print; with `--output`, write `evaluation.json` as well."""
    parser = commandline.parser(__doc__ or "", "without it: only printed")
    parser.add_argument(
        "--target-net", required=True, type=Path, metavar="DIR", help="saved target"
    )
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that parts of the network may be imported from",
    )
    arguments = parser.parse_args(argv)
    config = commandline.configuration(arguments)
    folder = commandline.output_folder(arguments, config, [FILE]) if arguments.output else None
    target = _target(arguments.target_net, arguments.allow_code)
    _check(target, config)
    teachers = None if config.lacks_weights else _teachers(config)
    data = load_data(config)
    if not data:
        raise InputError("evaluations", "is missing", "a data set to score on")
    if teachers is None:
        print(f"warning: {ALONE}", file=sys.stderr)
    if arguments.dry_run:
        print(
            "\n".join(f"would score on {images.name}: {len(images)} images" for images, _ in data)
        )
        return
    text = json.dumps(Scorer(data, teachers).score(target), indent=2)
    print(text)
    if folder is not None:
        (commandline.emptied(folder, [FILE]) / FILE).write_text(text + "\n", encoding="utf-8")


def _teachers(config: RunConfig) -> Teachers:
    whole = LocalTeachers(load_teachers(config.teachers, read_all_weights(config.teachers)))
    return in_parts(whole, config.training.micro_batch)


def _target(place: Path, allowed: Sequence[str]) -> TargetNet:
    try:
        return TargetNet.from_pretrained(place, allowed)
    except InputError as error:
        if error.key != "allow_code":
            raise
        module = error.what.rpartition(" ")[2]
        raise InputError("--allow-code", error.what, f"--allow-code {module}") from None


def _check(target: TargetNet, config: RunConfig) -> None:
    known = {t.name: remembered(t) for t in config.teachers}
    for branch in target.design.branches:
        name, here = branch.teacher.name, known.get(branch.teacher.name)
        if here == branch.teacher:
            continue
        there = here and first_difference(branch.teacher.model_dump(), here.model_dump())
        by = f", by {there.key}" if there else ""
        raise InputError(
            "teachers",
            f"the target was made of another {name}{by}",
            "the configuration that the target was made with",
        )


if __name__ == "__main__":
    sys.exit(commandline.guarded(main)())
