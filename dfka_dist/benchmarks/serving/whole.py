"""All measures of serving together, each kept when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dfka_dist.benchmarks.serving import memory, raw, scale, steps, traffic

Table = dict[str, Any]
Say = Callable[[str], None]
Measure = Callable[[Path, int, Say], Any]

MEASURES: dict[str, Measure] = {
    "steps": steps.step_times,
    "precision": steps.precision_times,
    "server": lambda _, repetitions, say: raw.server_speed(repetitions, say),
    "bytes": lambda _, __, say: traffic.bytes_on_the_wire(say),
    "beyond compute": lambda _, repetitions, say: traffic.beyond_compute(repetitions, say),
    "teachers": lambda _, repetitions, say: scale.steps_by_teachers(repetitions, say),
    "utilisation": lambda _, repetitions, say: scale.utilisation(repetitions, say),
    "memory": lambda place, _, say: memory.growth(place, say),
    "scores": lambda place, _, say: steps.precision_scores(place, say),
}
TITLES = {
    "steps": "Seconds of a joint step",
    "precision": "Seconds of a joint step of fashion, in one process with two threads",
    "server": "Images a second, one teacher of fashion, one thread",
    "bytes": "Bytes of one question about a batch of fashion to both teachers, there and back",
    "beyond compute": "Milliseconds beyond compute of a forward with its pullback, by batch",
    "teachers": "Seconds of a step with M teachers that sleep 100 + 100 ms",
    "utilisation": "How busy servers are that sleep 50 + 50 ms; CPU and model with what only waits",
    "memory": "Megabytes that a process holds alone, at two steps of a digits run",
    "scores": "Top-1 of the target on Fashion-MNIST's 10,000 after short runs, by seed",
}


def table(place: Path, repetitions: int, say: Say) -> Table:
    """Measure what was not measured before.

    Args:
        place: where results are kept; a measure whose file is there is not taken again.
        repetitions: turns of everything that is compared.
    """
    found = {}
    for name, measure in MEASURES.items():
        kept = place / f"{name.replace(' ', '-')}.json"
        if not kept.exists():
            say(f"{name}: measuring")
            measured = json.dumps(measure(place, repetitions, say), indent=2)
            kept.write_text(measured + "\n", encoding="utf-8")
        found[name] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def text(made: Table) -> str:
    """Every measure as a table of Markdown."""
    lines = []
    for name, measured in made.items():
        lines += [f"{TITLES[name]}:", "", *_rows(measured), ""]
    return "\n".join(lines)


def draw(made: Table, path: Path) -> None:
    """Step times side by side, and what M teachers cost."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, own in enumerate(made["steps"].values()):
        arms = {k: v["seconds"] for k, v in own.items() if isinstance(v, Mapping)}
        least = min(arms.values())
        for place, (arm, seconds) in enumerate(arms.items()):
            colour = ("#d3d8dd", "#b3bac2", "#7d8894", "#1f6f8b")[place]
            label = arm if not index else None
            left.bar(index + 0.2 * place, seconds / least, 0.18, color=colour, label=label)
    left.set_xticks([i + 0.3 for i in range(len(made["steps"]))], list(made["steps"]))
    left.set(ylabel="seconds of a step / the best")
    left.legend(frameon=False, fontsize=8)
    steps = {k: v for k, v in made["teachers"].items() if isinstance(v, Mapping)}
    many = {name.removeprefix("M = "): step for name, step in steps.items()}
    for kind, style in (("seconds", "-"), ("model", ":")):
        taken = [step[kind] for step in many.values()]
        right.plot(list(many), taken, style, marker="o", color="#1f6f8b", label=kind)
    right.legend(frameon=False, fontsize=8)
    right.set(xlabel="teachers of 100 + 100 ms", ylabel="seconds of a step", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _rows(measured: Any) -> list[str]:
    if isinstance(measured, list):
        return _listed(measured)
    plain = {key: value for key, value in measured.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in measured.items() if isinstance(value, Mapping)}
    return [
        *(_columns(nested) if nested else []),
        *([""] if nested and plain else []),
        *_pairs(plain),
    ]


def _listed(rows: list[Mapping[str, Any]]) -> list[str]:
    head = list(rows[0])
    body = [f"| {' | '.join(str(row[key]) for key in head)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body]


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    flat: dict[str, Mapping[str, Any]] = {}
    for name, own in rows.items():
        inner = {k: v for k, v in own.items() if isinstance(v, Mapping)}
        if inner:
            flat |= {f"{name}, {k}": v for k, v in inner.items()}
            flat |= {f"{name}, {k}": {"seconds": v} for k, v in own.items() if k not in inner}
        else:
            flat[name] = own
    head = list(dict.fromkeys(key for own in flat.values() for key in own))
    body = [
        f"| {' | '.join([name, *(str(own.get(key, '')) for key in head)])} |"
        for name, own in flat.items()
    ]
    return [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *body]


def _pairs(plain: Mapping[str, Any]) -> list[str]:
    if not plain:
        return []
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in plain.items())]
