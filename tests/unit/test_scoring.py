"""A target beside its teachers on the data of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models.target import TargetNet
from dfka_dist.scoring import Scorer, load_data
from dfka_dist.teachers.interface import Pending, Question, TeacherOutput
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def spec(make_teacher: Callable[..., TeacherSpec]) -> TeacherSpec:
    return make_teacher("one", ["a", "b"])


@pytest.fixture(scope="module")
def teacher(spec: TeacherSpec, load_teacher: Callable[[TeacherSpec], Teacher]) -> Teacher:
    return load_teacher(spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight noisy pictures, half of them called a and half b."""
    noise = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for index in range(4):
            pixels = noise.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    return tmp_path


def test_without_data_there_is_no_score(
    teacher: Teacher, make_copy: Callable[[Teacher], TargetNet]
) -> None:
    assert Scorer([], LocalTeachers({"one": teacher})).score(make_copy(teacher)) is None


def test_a_target_that_is_its_teacher_all_over_keeps_everything(
    spec: TeacherSpec,
    teacher: Teacher,
    folder: Path,
    make_config: MakeConfig,
    make_copy: Callable[[Teacher], TargetNet],
) -> None:
    config = make_config([spec], evaluations={"mine": {"source": f"folder:{folder}"}})
    scorer = Scorer(load_data(config), LocalTeachers({"one": teacher}))
    found = scorer.score(make_copy(teacher))
    assert found is not None
    assert found["examples"] == 8
    assert found["retention"] == {"mAP": 1.0, "accuracy": 1.0}
    assert scorer.score(make_copy(teacher)) == found


def test_teachers_are_asked_once_however_many_targets_there_are(
    spec: TeacherSpec,
    teacher: Teacher,
    folder: Path,
    make_config: MakeConfig,
    make_copy: Callable[[Teacher], TargetNet],
) -> None:
    config = make_config([spec], evaluations={"mine": {"source": f"folder:{folder}"}})
    asked: list[Question] = []

    class Listening(LocalTeachers):
        def forward(self, question: Question) -> Pending[dict[str, TeacherOutput]]:
            asked.append(question)
            return super().forward(question)

    scorer = Scorer(load_data(config), Listening({"one": teacher}))
    for _ in range(3):
        scorer.score(make_copy(teacher))
    assert len(asked) == 1


def test_without_teachers_a_target_has_the_score_that_it_has_beside_them(
    spec: TeacherSpec,
    teacher: Teacher,
    folder: Path,
    make_config: MakeConfig,
    make_copy: Callable[[Teacher], TargetNet],
) -> None:
    data = load_data(make_config([spec], evaluations={"mine": {"source": f"folder:{folder}"}}))
    beside = Scorer(data, LocalTeachers({"one": teacher})).score(make_copy(teacher))
    alone = Scorer(data, None).score(make_copy(teacher))
    assert beside is not None and alone is not None
    assert alone["target"] == beside["target"] and alone["teachers"] is None


def test_data_are_for_all_teachers_unless_some_are_named(
    spec: TeacherSpec,
    make_teacher: Callable[..., TeacherSpec],
    folder: Path,
    make_config: MakeConfig,
) -> None:
    source = {"source": f"folder:{folder}"}
    sets = {"every": source, "some": source | {"teachers": ["two"]}}
    config = make_config([spec, make_teacher("two", ["b"])], evaluations=sets)
    assert [names for _, names in load_data(config)] == [["one", "two"], ["two"]]


def test_data_that_cannot_be_read_are_refused_by_their_key(
    spec: TeacherSpec, make_config: MakeConfig
) -> None:
    config = make_config([spec], evaluations={"mine": {"source": "folder:/none"}})
    with pytest.raises(InputError) as caught:
        load_data(config)
    assert caught.value.key == "evaluations.mine.source"
