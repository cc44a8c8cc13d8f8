"""The images on which networks are compared without data, and what they are compared by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.probe import ProbeSet


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def probe() -> ProbeSet:
    made = ProbeSet()
    for seed in range(3):
        made.add(pictures(8, seed))
    return made


def test_a_probe_set_begins_with_every_generators_own_images(probe: ProbeSet) -> None:
    plain = torch.cat([pictures(8, seed) for seed in range(3)])
    assert torch.equal(probe.images()[: len(plain)], plain)


def test_a_probe_set_holds_more_than_the_generators_made(probe: ProbeSet) -> None:
    images = {image.numpy().tobytes() for image in probe.images()}
    assert len(images) == 3 * 3 * 8


def test_images_of_a_probe_set_lie_between_zero_and_one(probe: ProbeSet) -> None:
    images = probe.images()
    assert 0 <= images.min() < images.max() <= 1


def test_a_probe_set_is_the_same_again(probe: ProbeSet) -> None:
    assert torch.equal(probe.images(), probe.images())


@pytest.fixture(scope="module")
def teacher(
    make_teacher: Callable[..., TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> Teacher:
    return load_teacher(make_teacher("one", ["a", "b", "c"]))


def test_a_judgement_has_agreement_and_a_coverage_for_every_label(
    probe: ProbeSet, teacher: Teacher, make_copy: Callable[[Teacher], TargetNet]
) -> None:
    judged = probe.judge(make_copy(teacher), LocalTeachers({"one": teacher}))
    assert 0 <= judged["agreement"] <= 1
    assert list(judged["coverage"]) == ["a", "b", "c"]


def test_a_target_that_is_its_teacher_all_over_agrees_wholly(
    probe: ProbeSet, teacher: Teacher, make_copy: Callable[[Teacher], TargetNet]
) -> None:
    judged = probe.judge(make_copy(teacher), LocalTeachers({"one": teacher}))
    assert judged["agreement"] == 1.0
