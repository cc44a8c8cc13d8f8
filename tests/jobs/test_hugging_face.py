"""Hugging Face folders, amalgamated by servers and a worker as a user starts them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import KINDS, STRANGERS, behind, save_strangers, tail_of
from PIL import Image
from running import Ended, run
from safetensors.torch import load_file

from dfka_dist.loading import load
from dfka_dist.models.completion import complete
from dfka_dist.models.sources import read_all_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching, build_target

BRANCH = {"resnet": 1, "convnext": 2}


@pytest.mark.exhaustive
def test_a_target_of_hugging_face_folders_does_not_need_them_any_more(
    tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config = write(
        tmp_path,
        evaluations=None,
        teachers=save_strangers(tmp_path),
        target=tiny["target"] | {"branch": BRANCH},
        training=tiny["training"] | {"branch_steps": 2, "fine_tune_steps": 0},
    )
    ended = run("amalgamate", "--config", config, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    told = json.loads((tmp_path / "run" / "result.json").read_text())["teachers"]
    assert {t["name"]: {key: t[key] for key in ("labels", "task")} for t in told} == STRANGERS
    files = {kind: load_file(tmp_path / kind / "model.safetensors") for kind in KINDS}
    for kind in KINDS:
        shutil.rmtree(tmp_path / kind)
    target = TargetNet.from_pretrained(tmp_path / "run" / "target_net")
    for branch in target.design.branches:
        kind, own = branch.teacher.name, tail_of(target.state_dict(), branch.teacher.name)
        assert branch.depth == BRANCH[kind]
        assert own.keys() == behind(branch.entry, kind, files[kind])
        assert all(torch.equal(own[name], files[kind][name]) for name in own)
    assert target.predict(torch.rand(3, 3, 32, 32)).isfinite().all()


def test_a_target_is_of_the_same_folders_wherever_they_lie(
    tiny: dict[str, Any], write: Callable[..., Path], call: Callable[..., Ended], tmp_path: Path
) -> None:
    for place in (tmp_path / "one", tmp_path / "two"):
        given = save_strangers(place)
    images = {"source": f"folder:{tmp_path / 'images'}"}
    for label in ("a", "d"):
        picture = tmp_path / "images" / label / "0.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(picture)
    config = load(write(tmp_path / "one", teachers=given, evaluations=None), complete=complete)
    teachers = LocalTeachers(load_teachers(config.teachers, read_all_weights(config.teachers)))
    target = build_target(Branching(config, teachers.descriptions).design(), teachers)
    target.save_pretrained(tmp_path / "saved")
    training = tiny["training"] | {"recipe": "distill", "images": "noise"}
    start = tiny["target"] | {"start": str(tmp_path / "saved")}
    moved = write(
        tmp_path / "two",
        teachers=given,
        evaluations={"mine": images},
        training=training,
        target=start,
    )
    scored = call("evaluate", "--target-net", tmp_path / "saved", "--config", moved, "--dry-run")
    assert scored.code == 0, scored.err
    gone_on = call("amalgamate", "--config", moved, "--output", tmp_path / "o", "--dry-run")
    assert gone_on.code == 0, gone_on.err
