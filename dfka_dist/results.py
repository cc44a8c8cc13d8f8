"""What a run leaves in its output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfka_dist import origin
from dfka_dist.config import RunConfig
from dfka_dist.folders import whole, write_whole
from dfka_dist.models.target import TargetNet, version
from dfka_dist.report import MetricsLog, save_samples, write_model_card, write_report
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.training.outcome import SAMPLES, SHOWN, Network, Outcome

RESULT = "result.json"
"""What is written last."""
LEFT = (
    RESULT,
    "resolved.yaml",
    "target_net",
    "report.html",
    "samples.png",
    "metrics.jsonl",
    "tensorboard",
    "run.log",
    "checkpoints",
)
"""Everything that a run leaves in its folder."""
COPIED = tuple(name for name in (*LEFT[1:], LEFT[0]) if name != "checkpoints")
"""What of it is copied to a storage; the last one says that all else is there."""


def rebuilt(network: Network) -> TargetNet:
    """A network of an outcome, in eval mode."""
    target = TargetNet(network.design)
    target.load_state_dict(network.state)
    return target.eval()


def result(
    config: RunConfig,
    teachers: Mapping[str, TeacherDescription],
    outcome: Outcome,
    evaluations: Mapping[str, dict[str, Any] | None],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """`result.json`.

    Args:
        config: with all teachers.
        evaluations: of the networks of the outcome, by name.
    """
    network = outcome.network
    return {
        "name": config.run.name,
        "version": version(),
        "seed": config.run.seed,
        "recipe": config.training.recipe,
        "images": (config.training.images or origin.SYNTHESIZED).partition(":")[0],
        "start": config.target.start is not None,
        "steps": config.training.steps,
        "seconds": seconds,
        "phases": outcome.phases,
        "teachers": [
            {
                "name": name,
                "task": teacher.spec.task,
                "labels": teacher.spec.labels,
                "parameters": teacher.parameters,
                "sha256": teacher.sha256,
            }
            for name, teacher in teachers.items()
        ],
        "target": {
            "parameters": parameters(network),
            "labels": network.design.labels,
            "branch_points": branch_points(network),
        },
        "data_free": outcome.data_free,
        "evaluation": evaluations[network.name],
        "unscored": origin.unscored(evaluations[network.name], bool(config.evaluations)),
        "chosen": network.name,
        "candidates": [_brief(each, evaluations) for each in outcome.candidates],
        "depths": [
            _brief(each, evaluations) | {"branch_points": branch_points(each)}
            for each in outcome.depths
        ],
        "dual_losses": outcome.dual_losses,
    }


def parameters(network: Network) -> int:
    """How many a target holds."""
    return TargetNet(network.design).parameter_count()


def branch_points(network: Network) -> dict[str, int]:
    """Per teacher the depth at which its branch leaves the trunk."""
    return {branch.teacher.name: branch.depth for branch in network.design.branches}


def _brief(network: Network, evaluations: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """What is said of a network that stands beside the result."""
    scores = evaluations[network.name]
    kept = None
    if scores is not None:
        kept = {name: row["retention"] for name, row in scores["per_teacher"].items()}
    return {
        "name": network.name,
        "parameters": parameters(network),
        "agreement": network.data_free["agreement"],
        "target": scores and scores["target"],
        "retention": scores and scores["retention"],
        "per_teacher": kept,
    }


def write(
    folder: Path,
    found: dict[str, Any],
    outcome: Outcome,
    log: MetricsLog,
    configuration: str,
    *,
    by_label: bool,
) -> None:
    """Write everything; `result.json` last, so that it says that all else is there.

    Args:
        by_label: whether the generator was asked for labels, so that each has its row of samples.
    """
    target = rebuilt(outcome.network)
    with whole(folder / "target_net") as place:
        target.save_pretrained(place)
        write_model_card(place, found, target.design.code)
    if outcome.samples is not None:
        shown = target.labels[:SHOWN]
        assert len(outcome.samples) == SAMPLES * len(shown)
        rows = shown if by_label else [""] * len(shown)
        with whole(folder / "samples.png") as place:
            save_samples(outcome.samples, rows, place, more=len(target.labels) - len(shown))
    write_report(folder, found, log.records, configuration, by_label=by_label)
    write_whole(folder / RESULT, json.dumps(found, indent=2) + "\n")


def is_over(folder: Path) -> bool:
    """Whether a run has left its result in a folder, whole."""
    try:
        return isinstance(json.loads((folder / RESULT).read_text("utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
