"""Whether what is chosen without data is what the data would choose: two rank correlations.

One is over checkpoints of a run, on the probe set of that run. The other is over finished runs,
good ones and bad ones, on a probe set that is common to them: equal parts of what each run
synthesized, mixed and moved copies among them. What a run synthesized its target has learned from,
so that each knows its own part of the common set.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfka_dist.archive import Archive
from dfka_dist.benchmarks.quality import JOINT, scored
from dfka_dist.benchmarks.rows import Row, is_done, run
from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.evaluation import spearman
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.panel import Panel
from dfka_dist.training.probe import MOMENTS, ProbeSet

CHECKPOINTS = 20
"""Of the first run, half of them of its joint phase and half of its rehearsal."""
SPOILED: dict[str, tuple[str, ...]] = {
    "sound": (),
    "no rehearsal": ("training.rehearsal_steps=0",),
    "no diversity": ("losses.diversity=0.0",),
    "no disagreement": ("losses.adversarial=0.0",),
    "one dual step": ("training.dual_steps=1", "training.rehearsal_steps=0"),
    "spoiled weights": ("losses.batch_norm=0.1", "losses.adversarial=5.0"),
    "no statistics": ("losses.batch_norm=0.0",),
    "slow student": ("training.dual_rate=0.0002", "training.rehearsal_rate=0.0002"),
    "collapsed to a picture": (
        "losses.batch_norm=0.0",
        "losses.diversity=0.0",
        "losses.adversarial=0.0",
        "training.rehearsal_steps=0",
    ),
    "collapsed to nothing": (
        "training.sampled_labels=false",
        "losses.batch_norm=0.0",
        "losses.diversity=0.0",
        "losses.adversarial=0.0",
        "losses.discrete=1.0",
        "training.rehearsal_steps=0",
    ),
}
"""Runs by what is done to them."""

Table = dict[str, Any]


def rows(config: RunConfig, steps: int, place: Path) -> list[Row]:
    """Every run, each with an archive of its images.

    Args:
        place: where archives and results lie.

    Raises:
        InputError: the configuration has no data set.
    """
    scored(config)
    short = (
        *JOINT,
        f"training.steps={steps}",
        f"training.rehearsal_steps={4 * steps}",
        f"training.fine_tune_steps={max(1, steps // 4)}",
        f"training.candidates={CHECKPOINTS // 2}",
    )
    return [
        Row(name, (*short, *changes, f"training.archive={_archive(place, name)}"))
        for name, changes in SPOILED.items()
    ]


def table(
    config: RunConfig, source: Path, steps: int, place: Path, say: Callable[[str], None]
) -> Table:
    """Run what was not run before, judge every result on the common probe set, and correlate.

    Raises:
        InputError: the configuration has no data that cover all labels.
        RunFailed: a run ended otherwise than well.
    """
    results = {}
    for row in rows(config, steps, place):
        if not is_done(row, source, place):
            shutil.rmtree(_archive(place, row.name), ignore_errors=True)
        results[row.name] = run(row, source, place, say)
        pooled = results[row.name]["evaluation"]["target"]
        if pooled is None or pooled["accuracy"] is None:
            what = "name not one of all labels for each image"
            raise InputError("evaluations", what, "a data set of all labels")
    probe = _common_probe(config, [_archive(place, name) for name in results])
    runs = [
        {
            "run": name,
            "agreement": probe.judge(_target(config, place, name))["agreement"],
            **_score(result["evaluation"]["target"]),
        }
        for name, result in results.items()
    ]
    checkpoints = [
        {"checkpoint": each["name"], "agreement": each["agreement"], **_score(each["target"])}
        for each in results["sound"]["candidates"]
        if each["name"] != "fine-tuned"
    ]
    correlations = {
        what: {
            key: spearman([row["agreement"] for row in own], [row[key] for row in own])
            for key in ("accuracy", "mAP")
        }
        for what, own in (("checkpoints", checkpoints), ("runs", runs))
    }
    return {
        "config": config.run.name,
        "steps": steps,
        "spearman": correlations,
        "checkpoints": checkpoints,
        "runs": runs,
    }


def text(made: Table) -> str:
    """Both tables as Markdown, with their correlations."""
    lines = []
    for kind, what in (("checkpoints", "checkpoint"), ("runs", "run")):
        own = made["spearman"][kind]
        lines += [
            f"Spearman over {len(made[kind])} {kind}: "
            f"top-1 {own['accuracy']:.2f}, mAP {own['mAP']:.2f}",
            "",
            f"| {what} | agreement | top-1 | mAP |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {r[what]} | {r['agreement']:.4f} | {r['accuracy']:.4f} | {r['mAP']:.4f} |"
            for r in made[kind]
        ]
        lines.append("")
    return "\n".join(lines)


def draw(made: Table, path: Path) -> None:
    """Both as pictures: the true score over the agreement."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("checkpoints", "runs"), strict=True):
        own = made[kind]
        axes.scatter([r["agreement"] for r in own], [r["accuracy"] for r in own], color="#1f6f8b")
        rho = made["spearman"][kind]["accuracy"]
        axes.set(
            title=f"{len(own)} {kind}, Spearman {rho:.2f}",
            xlabel="agreement on the probe set, without data",
            ylabel="top-1 on the test data",
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _common_probe(config: RunConfig, archives: Sequence[Path]) -> ProbeSet:
    heard = config.without_unheard()
    weights = read_all_weights(heard.teachers)
    teachers = LocalTeachers(load_teachers(heard.teachers, weights))
    probe = ProbeSet(Panel(heard, teachers, range(config.training.batch_size), "fp32"))
    part = config.training.probe_images // MOMENTS
    for place in archives:
        batch = next(Archive.open(str(place), "training.archive").batches(size=part, seed=0))
        probe.add(batch.images, batch.homes)
    return probe


def _target(config: RunConfig, place: Path, name: str) -> TargetNet:
    own = [teacher.source.partition(":")[0] for teacher in config.teachers]
    return TargetNet.from_pretrained(place / Row(name, ()).folder / "target_net", own).eval()


def _archive(place: Path, name: str) -> Path:
    return place / "archives" / Row(name, ()).folder


def _score(target: dict[str, Any]) -> dict[str, Any]:
    return {key: target[key] for key in ("accuracy", "mAP")}
