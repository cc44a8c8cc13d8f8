"""What is measured of serving, as far as it can be proved without measuring."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dfka_dist.benchmarks import networks
from dfka_dist.benchmarks.serving import memory, steps, whole
from dfka_dist.benchmarks.serving.traffic import Mode, _least
from dfka_dist.config import PRESETS
from dfka_dist.loading import load
from dfka_dist.models.sources import initial_weights
from dfka_dist.teachers.interface import Question, TeacherOutput, Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "local, 1 thread, turns": {"seconds": 0.4},
    "served, 1 thread, at once": {"seconds": 0.3},
}
MADE: dict[str, Any] = {
    "steps": {"digits": {**ARMS, "served / local": 0.75}},
    "precision": {"fp32": {"seconds": 2.0}, "bf16": {"seconds": 1.0}, "bf16 / fp32": 0.5},
    "server": {"raw, forward": 100.0, "server / raw, forward": 0.97},
    "bytes": {"labels alone": {"bytes": 11, "least": 10, "ratio": 1.1, "summed": 1.1}},
    "beyond compute": {"2.0 MB": 5.0},
    "teachers": {
        "M = 1": {"seconds": 0.2, "model": 0.2},
        "M = 8": {"seconds": 0.21, "model": 0.2},
        "M = 8 / M = 1": 1.05,
        "cores of all that wait, of 32 servers": 0.3,
    },
    "utilisation": [{"teachers": 8, "clients": 4, "utilisation": 0.93}],
    "memory": {"server": {"at 200": 300, "at 1000": 301, "growth": 1.0}},
    "scores": {"fp32": [0.9, 0.91], "bf16": [0.9, 0.92], "bf16 - fp32, mean": 0.005},
}


def loaded(*specs: Any) -> LocalTeachers:
    return LocalTeachers(load_teachers(specs, initial_weights(specs, 0)))


def test_a_sleeping_teacher_sleeps_in_forward_and_in_backward() -> None:
    teachers = loaded(networks.sleeping_teacher("s", size=8, forward=0.1, backward=0.2))
    asked = Question(torch.rand(2, 1, 8, 8), ("s",), Wanted(gradient=True))
    began = time.perf_counter()
    answer = teachers.forward(asked).result()["s"]
    between = time.perf_counter()
    assert answer.logits is not None
    teachers.pullback(asked, {"s": TeacherOutput(torch.ones_like(answer.logits))}).result()
    assert 0.1 <= between - began < 0.2
    assert 0.2 <= time.perf_counter() - between < 0.3


def test_the_measured_resnet_has_the_size_of_resnet18() -> None:
    known = loaded(networks.resnet18_teacher("r", [str(i) for i in range(1000)])).descriptions["r"]
    assert known.parameters == 11_689_512


def test_the_least_possible_bytes_are_those_of_pictures_answers_and_gradients() -> None:
    """128 pictures of 32x32, once; logits of five labels; no sums without statistics."""
    config = load(PRESETS / "fashion.yaml", [])
    specs = [spec.model_copy(update={"weights": None}) for spec in config.teachers]
    known = loaded(*specs).descriptions
    pictures, logits = 4 * 128 * 32 * 32, 4 * 128 * 5
    assert _least(known, config, Mode()) == pictures + 2 * logits
    asked = Wanted(gradient=True)
    assert _least(known, config, Mode(asked)) == 3 * pictures + 4 * logits
    assert _least(known, config, Mode(asked), gradients=1) == 2 * pictures + 4 * logits
    assert _least(known, config, Mode(asked, wire="bf16")) == (3 * pictures + 4 * logits) / 2
    channels, height, width = known["low_garments"].shapes[1]
    features, gates = 4 * 128 * channels * height * width, 4 * 128 * channels
    assert _least(known, config, Mode(asked, depth=1)) == 3 * features + 4 * gates + 4 * logits


def test_a_step_takes_the_median_of_all_turns_and_every_start_its_own() -> None:
    starts = [[{"seconds": 1.0}, {"seconds": 2.0}], [{"seconds": 4.0}, {"seconds": 4.0}]]
    assert steps._over(starts) == {"seconds": 3.0, "least": 1.5, "most": 4.0}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["ray::TeacherServer.forward"], "server"),
        (["ray::IDLE"], "IDLE"),
        (["/x/ray/core/raylet/raylet", "--python=amalgamate.py"], "object store"),
        (["/x/gcs_server", "--log"], "gcs_server"),
        (["/x/python", "-u", "/x/ray/dashboard/agent.py", "--node"], "agent"),
        (["/x/python", "/y/jobs/amalgamate.py", "--config", "z"], "driver"),
    ],
)
def test_every_process_is_known_by_what_it_is(command: list[str], name: str) -> None:
    assert memory.kind(command) == name


def test_of_every_process_the_growth_is_told() -> None:
    first = {7: ("server", 10.0), 3: ("server", 20.0), 5: ("IDLE", 1.0)}
    last = {7: ("server", 12.0), 3: ("server", 20.5), 9: ("IDLE", 4.0)}
    found = memory.grown([first, {}, last])
    assert {name: own["growth"] for name, own in found.items()} == {"server": 0.5, "server 7": 2.0}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, measured in MADE.items():
        (tmp_path / f"{name.replace(' ', '-')}.json").write_text(json.dumps(measured))
    return tmp_path


def test_what_was_measured_before_is_not_measured_again(place: Path) -> None:
    said: list[str] = []
    assert whole.table(place, 5, said.append) == MADE
    assert said == []


def test_every_measure_is_a_table_with_its_title() -> None:
    text = whole.text(MADE)
    assert all(whole.TITLES[name] in text for name in whole.MEASURES)
    assert "| digits, served, 1 thread, at once | 0.3 |" in text
    assert "| server | 300 | 301 | 1.0 |" in text
    assert "| 8 | 4 | 0.93 |" in text


def test_the_measures_are_drawn(tmp_path: Path) -> None:
    whole.draw(MADE, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_what_was_measured() -> None:
    made = json.loads((ROOT / "jobs" / "figures" / "serving" / "benchmark.json").read_text())
    assert whole.text(made).strip() in (ROOT / "README.md").read_text(encoding="utf-8")
