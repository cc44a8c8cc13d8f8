"""Every preset with the weights that are committed beside it; no data set is needed."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from dfka_dist.config import PRESETS, RunConfig
from dfka_dist.loading import load
from dfka_dist.models import completion
from dfka_dist.models.sources import read_all_weights
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching, build_target

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
FOLDERS = sorted(path.parent.name for path in PRESETS.glob("*/manifest.json"))


@pytest.fixture(scope="module", params=NAMES)
def preset(request: pytest.FixtureRequest) -> RunConfig:
    return load(PRESETS / f"{request.param}.yaml", complete=completion.complete)


def manifest(folder: Path) -> list[dict[str, object]]:
    """What was written of the teachers in a folder when they were made."""
    told = json.loads((folder / "manifest.json").read_text("utf-8"))
    teachers: list[dict[str, object]] = told["teachers"]
    return teachers


def test_a_presets_teachers_make_a_target_that_names_every_label(preset: RunConfig) -> None:
    teachers = LocalTeachers(load_teachers(preset.teachers, read_all_weights(preset.teachers)))
    design = Branching(preset, teachers.descriptions).design()
    images = torch.rand(2, design.input.channels, design.input.size, design.input.size)
    predicted = build_target(design, teachers).eval().predict(images)
    assert predicted.shape == (2, len(preset.labels))
    assert predicted.isfinite().all()


def test_a_presets_teachers_are_those_of_the_manifest(preset: RunConfig) -> None:
    weights = read_all_weights(preset.teachers)
    for spec in preset.teachers:
        assert spec.weights is not None
        folder = (PRESETS / spec.weights.removeprefix("preset:")).parent
        own = {"labels": spec.labels, "sha256": weights[spec.name].sha256}
        (told,) = (each for each in manifest(folder) if each["name"] == spec.name)
        assert told | own == told


@pytest.mark.parametrize("name", FOLDERS)
def test_every_file_of_weights_has_the_sum_that_its_manifest_says(name: str) -> None:
    files = (PRESETS / name).glob("*.safetensors")
    sums = {path.stem: sha256(path.read_bytes()).hexdigest() for path in files}
    assert sums == {each["name"]: each["sha256"] for each in manifest(PRESETS / name)}
