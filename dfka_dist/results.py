"""What a run leaves in its output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfka_dist.config import RunConfig
from dfka_dist.models.target import TargetNet, version
from dfka_dist.report import MetricsLog, save_samples, write_model_card, write_report
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.training.amalgamator import SAMPLES, Outcome

LEFT = (
    "result.json",
    "resolved.yaml",
    "target_net",
    "report.html",
    "samples.png",
    "metrics.jsonl",
    "tensorboard",
    "run.log",
)
"""Everything that a run leaves in its folder."""


def rebuilt(outcome: Outcome) -> TargetNet:
    """The target of an outcome, in eval mode."""
    target = TargetNet(outcome.design)
    target.load_state_dict(outcome.state)
    return target.eval()


def result(
    config: RunConfig,
    teachers: Mapping[str, TeacherDescription],
    outcome: Outcome,
    target: TargetNet,
    evaluation: dict[str, Any] | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """`result.json`."""
    return {
        "name": config.run.name,
        "version": version(),
        "seed": config.run.seed,
        "recipe": config.training.recipe,
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
            "parameters": target.parameter_count(),
            "labels": target.labels,
            "branch_points": {
                branch.teacher.name: branch.depth for branch in outcome.design.branches
            },
        },
        "data_free": outcome.data_free,
        "evaluation": evaluation,
    }


def write(
    folder: Path,
    found: dict[str, Any],
    outcome: Outcome,
    target: TargetNet,
    log: MetricsLog,
    configuration: str,
) -> None:
    """Write everything; `result.json` last, so that it says that all else is there."""
    target.save_pretrained(folder / "target_net")
    write_model_card(folder / "target_net", found)
    save_samples(outcome.samples, target.labels, folder / "samples.png")
    assert len(outcome.samples) == SAMPLES * len(target.labels)
    write_report(folder, found, log.records, configuration)
    (folder / "result.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
