"""The table of what every part of the method adds to the target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfka_dist.benchmarks.rows import Row, run
from dfka_dist.config import EvaluationSpec, RunConfig
from dfka_dist.data import UNDIVIDED
from dfka_dist.errors import InputError

SEEDS = (0, 1, 2)
"""Of both recipes and of the references; every other row has the first."""
PAPER = (
    "training.recipe=paper",
    "training.sampled_labels=false",
    "training.jitter=0.0",
    "losses.one_hot=1.0",
    "losses.activation=0.1",
    "losses.entropy=5.0",
    "losses.discrete=6.5",
    "losses.group=1.0",
    "losses.batch_norm=0.0",
    "losses.adversarial=0.0",
    "losses.diversity=0.0",
    "losses.logits=0.0",
)
"""Equations 2 to 16 and nothing else, as in the preset paper."""
CHANGED = {
    "with group": ("losses.group=0.3",),
    "without group": ("losses.group=0.0",),
    "without batch_norm": ("losses.batch_norm=0.0",),
    "without adversarial": ("losses.adversarial=0.0",),
    "without diversity": ("losses.diversity=0.0",),
    "without sampled labels": ("training.sampled_labels=false",),
    "without jitter": ("training.jitter=0.0",),
}
"""Rows of the joint recipe by what they change; of the group term the one that is another."""

LAST = ("target.branch=last", "target.max_parameters=null", "training.branch_steps=0")
JOINT = ("training.recipe=joint", *LAST)
REHEARSALS = 9
"""Steps of a rehearsal that take as long as a joint step, about."""

NOTE = (
    "Every target but the regrouped one goes without regrouping: its branches leave the trunk at "
    "its end. Seconds are those of training up to the fine-tune, targets of other depths left out;"
    " the memory of the rows joint and of both of paper holds targets of other depths besides."
)

Table = dict[str, Any]


def rows(config: RunConfig, steps: int, place: Path) -> list[Row]:
    """Every run of the table.

    Args:
        steps: of the joint phase. Its rehearsal is as much longer as in the configuration; without
            one the joint phase goes on for as long. From images that are there the target makes as
            many steps, in the paper's rows half as many: each of them learns from two streams.
        place: of no account here.

    Raises:
        InputError: the configuration has no data set.
    """
    training, real = config.training, _training_images(scored(config))
    rehearsed = steps * training.rehearsal_steps // training.steps
    learned = steps * training.dual_steps + rehearsed
    both = (f"training.steps={steps}", f"training.rehearsal_steps={rehearsed}", *JOINT)
    longer = steps + rehearsed // REHEARSALS
    one = (f"training.steps={longer}", "training.rehearsal_steps=0", *JOINT)
    blocks = (f"training.steps={2 * steps}", f"training.block_steps={max(1, learned // 8)}", *LAST)
    given = ("training.recipe=distill", f"training.steps={learned}", *LAST)
    # Every image of the newest batch, and next to nothing of what was before.
    forgetful = ("training.memory_megabytes=1", "training.fresh_every=1")
    return [
        *[Row("joint", (*both, f"training.branch_steps={max(1, steps // 2)}"), s) for s in SEEDS],
        *[Row(name, (*both, *changes)) for name, changes in _changed(config).items()],
        Row("without rehearsal", one),
        Row("without rehearsal and memory", (*one, *forgetful)),
        *[Row("paper", (*PAPER, *blocks), seed) for seed in SEEDS],
        Row("paper without link", (*PAPER, *blocks, "losses.link=0.0")),
        *[Row("noise images", (*given, "training.images=noise"), seed) for seed in SEEDS],
        *[
            Row("real images", (*given, f"training.images={s}"), seed)
            for s in real
            for seed in SEEDS
        ],
    ]


def _training_images(scored: EvaluationSpec) -> list[str]:
    """The source if it has other images than those that are scored on, or nothing."""
    return [] if scored.source.startswith(UNDIVIDED) else [scored.source]


def _changed(config: RunConfig) -> dict[str, tuple[str, ...]]:
    same = "with group" if config.losses.group else "without group"
    return {name: changes for name, changes in CHANGED.items() if name != same}


def scored(config: RunConfig) -> EvaluationSpec:
    """The data set that rows are scored on.

    Raises:
        InputError: there is none, or none of all labels.
    """
    if not config.evaluations:
        raise InputError("evaluations", "is missing", "a data set to score on")
    for evaluation in config.evaluations.values():
        own = evaluation.teachers
        heard = [t for t in config.teachers if own == "all" or t.name in own]
        if {label for teacher in heard for label in teacher.labels} >= set(config.labels):
            return evaluation
    raise InputError("evaluations", "cover not all labels", "a data set of all labels")


def table(
    config: RunConfig, source: Path, steps: int, place: Path, say: Callable[[str], None]
) -> Table:
    """Run what was not run before, and put everything side by side.

    Raises:
        InputError: the configuration has no data that cover all labels.
        RunFailed: a run ended otherwise than well.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(config, steps, place):
        result = run(row, source, place, say)
        if result["evaluation"] is None or result["evaluation"]["dataset"] is None:
            raise InputError("evaluations", "cover not all labels", "a data set of all labels")
        found.setdefault(row.name, []).append(result)
    lines = {name: _line(results, _chosen) for name, results in found.items()}
    joint = found["joint"]
    lines["joint without fine-tune"] = _line(joint, _untuned)
    lines["joint regrouped at argmin"] = _line(joint, _regrouped)
    return {"config": config.run.name, "steps": steps, "rows": lines}


def text(made: Table) -> str:
    """The table as Markdown."""
    head = "| row | seeds | top-1 | kept | mAP | kept | parameters | seconds | GiB |"
    lines = [head, "|---" * 9 + "|"]
    for name, row in made["rows"].items():
        cells = [name, len(row["seeds"])]
        for key in ("accuracy", "retention_accuracy", "mAP", "retention_mAP"):
            cells.append(f"{row[key]:.4f}")
        held = ", ".join(f"{count:,}" for count in dict.fromkeys(row["parameters"]))
        cells += [held, f"{row['seconds']:.0f}", f"{row['peak_gib']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", NOTE])


def draw(made: Table, path: Path) -> None:
    """The table as a picture: retention of top-1, a bar for each row."""
    from matplotlib.figure import Figure  # takes a second to import

    names = list(made["rows"])[::-1]
    kept = [made["rows"][name]["retention_accuracy"] for name in names]
    figure = Figure(figsize=(8, 0.36 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, kept, color=["#1f6f8b" if n == "joint" else "#b3bac2" for n in names])
    for at, value in enumerate(kept):
        axes.text(value, at, f" {value:.3f}", va="center", fontsize=8)
    axes.set(xlim=(0, 1.08), xlabel="top-1 of the target / top-1 of the teachers side by side")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _line(
    results: Sequence[Mapping[str, Any]], network: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Means over seeds."""
    own = [network(result) for result in results]

    def mean(values: Sequence[float]) -> float:
        return round(statistics.fmean(values), 6)

    return {
        "seeds": [result["seed"] for result in results],
        "accuracy": mean([each["target"]["accuracy"] for each in own]),
        "mAP": mean([each["target"]["mAP"] for each in own]),
        "retention_accuracy": mean([each["retention"]["accuracy"] for each in own]),
        "retention_mAP": mean([each["retention"]["mAP"] for each in own]),
        "each_retention_accuracy": [each["retention"]["accuracy"] for each in own],
        "parameters": [each["parameters"] for each in own],
        "seconds": mean([_trained(result) for result in results]),
        "peak_gib": round(max(result["peak_bytes"] for result in results) / 2**30, 2),
    }


def _trained(result: Mapping[str, Any]) -> float:
    after = ("filters", "branches", "chosen", "fine_tune")
    return sum(float(p["seconds"]) for p in result["phases"] if p["name"] not in after)


def _chosen(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(each for each in result["candidates"] if each["name"] == result["chosen"])


def _untuned(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The best network before the fine-tune."""
    before = [each for each in result["candidates"] if each["name"] != "fine-tuned"]
    return max(before, key=lambda each: float(each["agreement"]))


def _regrouped(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network whose branches leave where each teacher's dual loss is least."""
    best = {name: int(min(own, key=own.get)) for name, own in result["dual_losses"].items()}
    chosen = {**_chosen(result), "branch_points": result["target"]["branch_points"]}
    networks: list[Mapping[str, Any]] = [*result["depths"], chosen]
    return next(each for each in networks if each["branch_points"] == best)
