"""Lines of the report as points in a box of 100 by 100, from plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""

_POINTS = 300  # of a loss curve, about one per pixel


def loss_curves(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One small picture per loss term: its values over all steps, phases side by side."""
    own: dict[str, list[Record]] = {}
    for record in records:
        for term, value in record["losses"].items():
            if math.isfinite(value):  # the report of a run that failed must still be drawn
                own.setdefault(term, []).append(record)
    return [_curve(term, found, records) for term, found in own.items()]


def _curve(term: str, own: Sequence[Record], every: Sequence[Record]) -> dict[str, Any]:
    """Points in a box of 100 by 100; a line is broken where a phase ends."""
    values = [record["losses"][term] for record in own]
    low, high = min(values), max(values)
    first, last = every[0]["global_step"], every[-1]["global_step"]
    stride = -(-len(own) // _POINTS)
    lines: dict[str, list[str]] = {}
    for at, (record, value) in enumerate(zip(own, values, strict=True)):
        if at % stride == 0 or at == len(own) - 1:
            across = 100 * (record["global_step"] - first) / max(last - first, 1)
            up = 100 * (high - value) / ((high - low) or 1)
            lines.setdefault(record["phase"], []).append(f"{across:.2f},{up:.2f}")
    return {
        "term": term,
        "low": low,
        "high": high,
        "last": values[-1],
        "lines": {phase: " ".join(points) for phase, points in lines.items()},
    }


def depth_curve(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score of the target with its branches at every depth, against its parameters.

    The score is the retention of accuracy, else of mAP, else the mean of the teachers' own, else
    the data-free agreement. None where the run made only one target.
    """
    if not result.get("depths"):
        return None
    own = next(each for each in result["candidates"] if each["name"] == result["chosen"])
    networks = [*result["depths"], own | {"branch_points": result["target"]["branch_points"]}]
    measure = next(
        name for name in _SCORES if all(_SCORES[name](each) is not None for each in networks)
    )
    points = [
        {
            "name": _where(each["branch_points"]),
            "parameters": each["parameters"],
            "score": _SCORES[measure](each),
            "agreement": each["agreement"],
            "chosen": each["name"] == own["name"],
        }
        for each in sorted(networks, key=lambda each: each["parameters"])
    ]
    made = {phase["name"] for phase in result["phases"] if phase["steps"]}
    return {
        "measure": measure,
        "points": _placed(points),
        "learned": "branches" in made,
        "tuned": "fine_tune" in made,
        "but": own["name"] != "fine-tuned",
    }


def _retention(network: Mapping[str, Any], kind: str) -> float | None:
    scores = network["retention"]
    return scores[kind] if scores else None


def _mean_retention(network: Mapping[str, Any]) -> float | None:
    kept = [
        row["accuracy"] if row["accuracy"] is not None else row["mAP"]
        for row in (network["per_teacher"] or {}).values()
        if row is not None
    ]
    known = [value for value in kept if value is not None]
    return sum(known) / len(known) if known else None


_SCORES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "top-1 retention": lambda network: _retention(network, "accuracy"),
    "mAP retention": lambda network: _retention(network, "mAP"),
    "mean retention of the teachers' own tasks": _mean_retention,
    "agreement": lambda network: network["agreement"],
}


def _where(branch_points: Mapping[str, int]) -> str:
    """One number where all branches leave at the same depth."""
    depths = list(branch_points.values())
    return str(depths[0]) if len(set(depths)) == 1 else ", ".join(map(str, depths))


def _placed(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    across = [point["parameters"] for point in points]
    up = [point["score"] for point in points]
    return [
        point
        | {
            "x": 100 * (point["parameters"] - min(across)) / ((max(across) - min(across)) or 1),
            "y": 100 * (max(up) - point["score"]) / ((max(up) - min(up)) or 1),
        }
        for point in points
    ]
