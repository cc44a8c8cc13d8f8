"""Measures 1 and 5: a training step with served teachers against one with local ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dfka_dist.benchmarks.networks import resnet18_teacher
from dfka_dist.benchmarks.rows import Row, run
from dfka_dist.benchmarks.serving.arm import Arm, Order, Way
from dfka_dist.config import PRESETS, RunConfig
from dfka_dist.loading import dump, load

WAYS: tuple[tuple[Way, int, Order], ...] = (
    ("local", 1, "turns"),
    ("local", 2, "turns"),
    ("local", 1, "at once"),
    ("served", 1, "at once"),
)
"""Threads within the trainer's operations, and the order of its two networks; with served teachers
the last is what a run does on two cores."""
RESNET_BATCH = 32
SECONDS = 6.0
"""Steps of a turn last about so long."""
STARTS = 3
"""How often every arm is started, so that a measure lasts some minutes: a machine may be better to
one of the arms in one minute than in the next."""

PRECISIONS = ("fp32", "bf16")
SEEDS = (0, 1, 2)

Say = Callable[[str], None]
Table = dict[str, Any]
Turns = list[dict[str, float]]


def configurations() -> dict[str, RunConfig]:
    """What is measured, by name."""
    return {
        "digits": _quiet(load(PRESETS / "digits.yaml", [])),
        "fashion": _quiet(load(PRESETS / "fashion.yaml", [])),
        "resnet18": _resnets(),
    }


def step_times(place: Path, repetitions: int, say: Say) -> Table:
    """Of every configuration the median seconds of a step by its arms, and their ratio.

    The arms take turns. Nothing else runs but the processes of the served one, which wait beside
    the others' turns.
    """
    found = {}
    for name, config in configurations().items():
        path = place / f"{name}.yaml"
        path.write_text(dump(config), encoding="utf-8")
        arms = [Arm(path, *way) for way in WAYS]
        found[name] = compared(arms, repetitions, say)
        *plain, at_once, served = [found[name][arm.name]["seconds"] for arm in arms]
        found[name]["served / local in turns"] = round(served / min(plain), 3)
        found[name]["served / local at once"] = round(served / at_once, 3)
        found[name]["served / local"] = round(served / min(*plain, at_once), 3)
        say(f"{name}: served / local {found[name]['served / local']}")
    return found


def precision_times(place: Path, repetitions: int, say: Say) -> Table:
    """bf16 with channels_last against fp32, in the trainer's own process with two threads."""
    paths = {}
    for precision in PRECISIONS:
        training = {"precision": precision}
        config = _changed(load(PRESETS / "fashion.yaml", []), training=training)
        paths[precision] = place / f"fashion-{precision}.yaml"
        paths[precision].write_text(dump(_quiet(config)), encoding="utf-8")
    arms = [Arm(path, "local", 2, "turns") for path in paths.values()]
    for arm, precision in zip(arms, paths, strict=True):
        arm.name = precision
    found = compared(arms, repetitions, say)
    ratio = found["bf16"]["seconds"] / found["fp32"]["seconds"]
    return found | {"bf16 / fp32": round(ratio, 3)}


def precision_scores(place: Path, say: Say) -> Table:
    """What short runs of fashion keep in fp32 and in bf16 on all its test images, seed by seed."""
    rows = [Row(precision, _short(precision), seed) for seed in SEEDS for precision in PRECISIONS]
    kept: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for row in rows:
        result = run(row, PRESETS / "fashion.yaml", place / "scores", say)
        kept[row.name].append(result["evaluation"]["target"]["accuracy"])
    pairs = zip(kept["bf16"], kept["fp32"], strict=True)
    return kept | {"bf16 - fp32, mean": round(statistics.fmean(a - b for a, b in pairs), 4)}


def _short(precision: str) -> tuple[str, ...]:
    steps = {"steps": 150, "rehearsal_steps": 1500, "branch_steps": 0, "fine_tune_steps": 50}
    return (f"training.precision={precision}", *(f"training.{k}={v}" for k, v in steps.items()))


def compared(arms: Sequence[Arm], repetitions: int, say: Say) -> Table:
    """Median seconds of a step, and of waiting in it, of arms that take turns, over all starts; and
    the least and the most that the median of one start was."""
    starts = [_started(arms, -(-repetitions // STARTS), say) for _ in range(STARTS)]
    return {arm.name: _over([told[arm.name] for told in starts]) for arm in arms}


def _started(arms: Sequence[Arm], turns: int, say: Say) -> dict[str, Turns]:
    """What arms tell of their turns, from one start of all to their end."""
    told: dict[str, Turns] = {arm.name: [] for arm in arms}
    with ExitStack() as stack:
        for arm in arms:
            stack.enter_context(arm)
            say(f"{arm.name} is warm")
        counts = {a.name: max(1, round(SECONDS / a.steps(2)["seconds"])) for a in arms}
        for _ in range(turns):
            for arm in arms:
                told[arm.name].append(arm.steps(counts[arm.name]))
    return told


def _over(starts: Sequence[Turns]) -> Table:
    """Of one arm."""
    together = [turn for turns in starts for turn in turns]
    medians = [statistics.median(turn["seconds"] for turn in turns) for turns in starts]
    return {
        key: round(statistics.median(turn[key] for turn in together), 5) for key in together[0]
    } | {"least": round(min(medians), 5), "most": round(max(medians), 5)}


def _quiet(config: RunConfig) -> RunConfig:
    """Without data, and long enough that no rate falls to nothing."""
    return _changed(config.model_copy(update={"evaluations": {}}), training={"steps": 100_000})


def _changed(config: RunConfig, *, training: dict[str, Any]) -> RunConfig:
    changed = config.training.model_copy(update=training)
    return config.model_copy(update={"training": changed})


def _resnets() -> RunConfig:
    labels = [f"label{index}" for index in range(20)]
    config = load(
        PRESETS / "digits.yaml", ["evaluations={}", f"training.batch_size={RESNET_BATCH}"]
    )
    teachers = [resnet18_teacher("one", labels[:10]), resnet18_teacher("two", labels[10:])]
    return _quiet(config.model_copy(update={"teachers": teachers}))
