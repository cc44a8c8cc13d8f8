"""What a sweep finds of weights that were spoiled on purpose, beside those that they were before.

The configuration's own values of what it searches are the spoiled ones; the sound ones are the
defaults, which no trial is given. All are compared after as many steps as a trial has, on images of
trials that are none of them; then the best and the sound weights make whole runs of other seeds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfka_dist.benchmarks.quality import scored
from dfka_dist.benchmarks.rows import Row, run
from dfka_dist.config import LossWeights, RunConfig
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.loading import dump, load
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.scoring import Scorer, load_data
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.tuning.ranking import Jury, correlations
from dfka_dist.tuning.records import Folder
from dfka_dist.tuning.space import Point, Space

JOB = Path(__file__).resolve().parents[2] / "jobs" / "tune.py"
SEEDS = (1, 2)
"""Of the whole runs; the sweep has another."""
SOUND = "sound"

Table = dict[str, Any]


def rows(config: RunConfig, steps: int, place: Path) -> list[Row]:
    """The runs whose weights are known before the sweep.

    Raises:
        InputError: the configuration has no data set, or searches something else than weights.
    """
    scored(config)
    point = _sound(config)
    short = _changes(_shortened(config, steps).trial)
    return [Row(SOUND, (*short, *_changes(point))), *_whole(SOUND, point)]


def table(
    config: RunConfig, source: Path, steps: int, place: Path, say: Callable[[str], None]
) -> Table:
    """Sweep, and run what was not run before.

    Raises:
        InputError: as `rows` says.
        RunFailed: the sweep or a run ended otherwise than well.
    """
    short, *whole = rows(config, steps, place)
    _sweep(config, steps, place, say)
    jury, folder = _jury(config, place)
    standings = jury.rank(folder.records())
    best = standings[0].record.point
    own = Space(config).own
    spoiled = next((each for each in standings if each.record.point == own), None)
    if spoiled is None or spoiled.agreement is None:
        raise RunFailed("the pilot with the run's own weights did not come to its end")
    run(short, source, place, say)
    compared = {
        "spoiled": folder.target(spoiled.record, ()),
        "best": folder.target(standings[0].record, ()),
        SOUND: TargetNet.from_pretrained(place / short.folder / "target_net"),
    }
    finished = [each.record for each in standings if each.agreement is not None]
    ours = (spoiled.record, standings[0].record)
    strangers = [record for record in finished if record not in ours] or finished
    results = {
        row: run(row, source, place, say)["evaluation"]["target"]
        for row in (*whole, *_whole("best", best))
    }
    return {
        "config": config.run.name,
        "steps": steps,
        "sweep": {
            "trials": len(standings),
            "finished": sum(each.agreement is not None for each in standings),
            "seconds": max(each.record.ended for each in standings),
            "spearman": correlations(standings),
        },
        "points": {"spoiled": spoiled.record.point, "best": best, SOUND: _sound(config)},
        "trial": {name: jury.compare(strangers, target) for name, target in compared.items()},
        "whole": [
            {"weights": row.name.split()[0], "seed": row.seed, **_score(score)}
            for row, score in results.items()
        ],
    }


def recovered(made: Table, key: str) -> float:
    """Which part of the way from the spoiled to the sound weights the sweep has gone."""
    spoiled, best, sound = (made["trial"][name][key] for name in ("spoiled", "best", SOUND))
    return float((best - spoiled) / (sound - spoiled))


def text(made: Table) -> str:
    """As Markdown."""
    sweep = made["sweep"]
    keys = list(made["points"][SOUND])
    lines = [
        f"{sweep['trials']} trials of at most {made['steps']} steps, {sweep['finished']} of them "
        f"to their end, in {sweep['seconds'] / 60:.0f} minutes; rank correlation of agreement and "
        + ", ".join(f"{key} {value:.2f}" for key, value in sweep["spearman"].items()),
        "",
        f"| weights, one trial | {' | '.join(keys)} | agreement | top-1 | mAP |",
        f"|---|{'---|' * (len(keys) + 3)}",
    ]
    for name, row in made["trial"].items():
        values = " | ".join(f"{made['points'][name][key]:.3g}" for key in keys)
        scores = " | ".join(f"{row[key]:.4f}" for key in ("agreement", "accuracy", "mAP"))
        lines.append(f"| {name} | {values} | {scores} |")
    gaps = ", ".join(f"{recovered(made, key):.0%} in {key}" for key in ("agreement", "accuracy"))
    lines += ["", f"Recovered of the gap: {gaps}.", "", "| whole run | seed | top-1 | mAP |"]
    lines.append("|---|---|---|---|")
    lines += [
        f"| {row['weights']} | {row['seed']} | {row['accuracy']:.4f} | {row['mAP']:.4f} |"
        for row in made["whole"]
    ]
    return "\n".join(lines)


def draw(made: Table, path: Path) -> None:
    """The trial budget's scores as bars."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    names = list(made["trial"])
    for offset, (key, color) in enumerate((("agreement", "#b8c4c9"), ("accuracy", "#1f6f8b"))):
        places = [index + 0.4 * offset for index in range(len(names))]
        axes.bar(places, [made["trial"][n][key] for n in names], 0.38, label=key, color=color)
    axes.set_xticks([index + 0.2 for index in range(len(names))], names)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _sound(config: RunConfig) -> Point:
    """The defaults of the loss weights that are searched."""
    if config.search is None:
        raise InputError("search", "is missing", "a space of loss weights")
    for key in config.search.space:
        if not key.startswith("losses."):
            raise InputError(f"search.space.{key}", "is no loss weight", "a space of loss weights")
    defaults = LossWeights()
    return {key: getattr(defaults, key.partition(".")[2]) for key in config.search.space}


def _shortened(config: RunConfig, steps: int) -> Any:
    assert config.search is not None
    trial = config.search.trial | {"training.steps": steps}
    return config.search.model_copy(update={"trial": trial})


def _changes(point: Point) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in point.items())


def _whole(name: str, point: Point) -> list[Row]:
    """Whole runs of other seeds, for the table without targets at other depths."""
    changes = (*_changes(point), "training.branch_steps=0")
    return [Row(f"{name} whole", changes, seed) for seed in SEEDS]


def _sweep(config: RunConfig, steps: int, place: Path, say: Callable[[str], None]) -> None:
    source = place / "sweep.yaml"
    shortened = config.model_copy(update={"search": _shortened(config, steps)})
    source.write_text(dump(shortened), encoding="utf-8")
    if (place / "sweep" / "sweep.html").exists():
        return say("sweep: done before")
    say("sweep: running")
    arguments = ["--config", str(source), "--output", str(place / "sweep"), "--resume"]
    with (place / "sweep.log").open("w", encoding="utf-8") as log:
        ended = subprocess.run([sys.executable, str(JOB), *arguments], stdout=log, stderr=log)
    if ended.returncode:
        raise RunFailed(f"the sweep ended with exit code {ended.returncode}: {place / 'sweep.log'}")


def _jury(config: RunConfig, place: Path) -> tuple[Jury, Folder]:
    heard = load(place / "sweep" / "resolved.yaml").without_unheard()
    teachers = LocalTeachers(load_teachers(heard.teachers, read_all_weights(heard.teachers)))
    folder = Folder(place / "sweep")
    return Jury(heard, teachers, folder, Scorer(load_data(heard), teachers)), folder


def _score(target: dict[str, Any]) -> dict[str, Any]:
    return {key: target[key] for key in ("accuracy", "mAP")}
