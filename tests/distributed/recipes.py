"""Small runs of every recipe, by teachers that differ in task, labels, depth and format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.ledger import Shelf
from dfka_dist.training.outcome import Outcome

LABELS = ["d", "a", "b", "c", "e"]
DEPTHS = (1, 2, 3)
PHASES = {
    "joint": ["joint", "rehearsal", "filters", "branches", "fine_tune"],
    "paper": ["synthesis", "dual", "fine_tune"],
    "noise": ["distill", "fine_tune"],
    "folder": ["distill", "filters", "branches", "fine_tune"],
}
"""Recipes as they are run here, with their phases."""
BRANCHES: dict[str, Any] = {"joint": "best", "paper": "best", "noise": {"two": 2}, "folder": "last"}


@dataclass(frozen=True)
class Ran:
    name: str
    outcome: Outcome
    records: list[Record]


Run = Callable[..., Ran]


@pytest.fixture(scope="package")
def strangers(make_teacher: Callable[..., TeacherSpec]) -> list[TeacherSpec]:
    """A softmax teacher of three blocks, and a sigmoid teacher of two."""
    return [
        make_teacher("one", "abc", task="single_label", channels=3),
        make_teacher("two", "de", widths=(5, 6), size=12),
    ]


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy pictures of nothing that anybody knows."""
    place, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (place / "any").mkdir()
    for index in range(12):
        pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "any" / f"{index}.png")
    return place


@pytest.fixture(scope="package")
def run(
    strangers: list[TeacherSpec],
    folder: Path,
    make_config: Callable[..., RunConfig],
    load_teacher: Callable[[TeacherSpec], Teacher],
    process_group: None,
) -> Run:
    """Run one of `PHASES`: `run("paper", zero_stage=2)`; by other teachers of the same names and
    labels with `specs`, and by those that are served with `teachers`."""
    own: dict[str, dict[str, Any]] = {
        "joint": {"branch_steps": 2, "candidates": 3},
        "paper": {"recipe": "paper", "block_steps": 2, "branch_steps": 2},
        "noise": {"recipe": "distill", "images": "noise"},
        "folder": {"recipe": "distill", "images": f"folder:{folder}", "branch_steps": 2},
    }
    short = {
        "steps": 6,
        "rehearsal_steps": 4,
        "fine_tune_steps": 3,
        "batch_size": 8,
        "report_every": 2,
        "probe_images": 64,
    }

    def run(
        name: str,
        target: Any = None,
        losses: Any = None,
        specs: list[TeacherSpec] = strangers,
        teachers: Teachers | None = None,
        shelf: Shelf | None = None,
        tell: Callable[[Record], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        **training: Any,
    ) -> Ran:
        config = make_config(
            specs,
            target={"labels": LABELS, "arguments": {"widths": [4, 6, 8]}}
            | (target or {"branch": BRANCHES[name]}),
            generator={"latent": 6},
            losses={"group": 0.3, "activation": 0.1, "entropy": 0.1, "discrete": 0.1}
            | (losses or {}),
            training=short | {"memory_megabytes": 1, "precision": "fp32"} | own[name] | training,
        )
        here = teachers or LocalTeachers({spec.name: load_teacher(spec) for spec in specs})
        records: list[Record] = []
        made = Amalgamator(config, here, tell or records.append, shelf=shelf, stopping=stopping)
        return Ran(name, made.run(), records)

    return run
