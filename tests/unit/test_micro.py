"""Teachers that are asked in parts answer as those who are asked about the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.teachers.interface import (
    BatchNormSums,
    InputGradient,
    Question,
    TeacherOutput,
    Wanted,
)
from dfka_dist.teachers.local import LocalTeachers, RememberingTeacher
from dfka_dist.teachers.micro import MicroBatchedTeachers
from dfka_dist.teachers.teacher import Teacher

IMAGES = 7
EVERYTHING = Wanted(embedding=True, sums=True, gradient=True)


@pytest.fixture(scope="module")
def loaded(
    make_teacher: Callable[..., TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> dict[str, Teacher]:
    return {name: load_teacher(make_teacher(name, "abc")) for name in ("one", "two")}


@pytest.fixture(params=[1, 3, 7, 9])
def both(
    request: pytest.FixtureRequest, loaded: dict[str, Teacher]
) -> tuple[LocalTeachers, MicroBatchedTeachers]:
    """The same teachers, plainly and in parts of so many images."""
    whole = LocalTeachers(loaded)
    return whole, MicroBatchedTeachers(LocalTeachers(loaded), request.param)


def question(loaded: Mapping[str, Teacher], depth: int, wanted: Wanted = EVERYTHING) -> Question:
    random = torch.Generator().manual_seed(depth)
    shape = loaded["one"].description.shapes[depth]
    inputs = torch.rand(IMAGES, *shape, generator=random)
    gates = {n: torch.rand(IMAGES, shape[0], generator=random) for n in loaded} if depth else {}
    return Question(inputs, tuple(loaded), wanted, depth=depth, gates=gates)


def tensors(answer: TeacherOutput | InputGradient) -> list[Tensor]:
    if isinstance(answer, InputGradient):
        return [answer.inputs, *([] if answer.gate is None else [answer.gate])]
    sums = answer.sums
    own = [] if sums is None else [sums.count, sums.first, sums.second]
    return [v for v in (answer.logits, answer.embedding, *own) if v is not None]


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    pairs = [(tensors(one[name]), tensors(other[name])) for name in one]
    return list(one) == list(other) and all(
        len(a) == len(b)
        and all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(a, b, strict=True))
        for a, b in pairs
    )


def cotangents(answers: Mapping[str, TeacherOutput]) -> dict[str, TeacherOutput]:
    random = torch.Generator().manual_seed(9)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=random)

    found = {}
    for name, answer in answers.items():
        assert (
            answer.logits is not None and answer.embedding is not None and answer.sums is not None
        )
        sums = BatchNormSums(answer.sums.count, like(answer.sums.first), like(answer.sums.second))
        found[name] = TeacherOutput(like(answer.logits), like(answer.embedding), sums)
    return found


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_answers_are_those_about_the_whole_batch(
    both: tuple[LocalTeachers, MicroBatchedTeachers], loaded: dict[str, Teacher], depth: int
) -> None:
    asked = question(loaded, depth)
    whole, parts = (teachers.forward(asked).result() for teachers in both)
    assert same(parts, whole)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_are_those_of_the_whole_batch(
    both: tuple[LocalTeachers, MicroBatchedTeachers], loaded: dict[str, Teacher], depth: int
) -> None:
    asked = question(loaded, depth)
    given = cotangents(both[0].forward(asked).result())
    both[1].forward(asked).result()
    whole, parts = (teachers.pullback(asked, given).result() for teachers in both)
    assert same(parts, whole)


def test_only_what_is_asked_for_is_answered(
    both: tuple[LocalTeachers, MicroBatchedTeachers], loaded: dict[str, Teacher]
) -> None:
    answers = both[1].forward(question(loaded, 0, Wanted())).result()
    assert all(a.embedding is None and a.sums is None for a in answers.values())


def test_cotangents_of_logits_alone_are_enough(
    both: tuple[LocalTeachers, MicroBatchedTeachers], loaded: dict[str, Teacher]
) -> None:
    asked = question(loaded, 0, Wanted(gradient=True))
    given = {n: TeacherOutput(torch.ones(IMAGES, 3)) for n in loaded}
    for teachers in both:
        teachers.forward(asked).result()
    whole, parts = (teachers.pullback(asked, given).result() for teachers in both)
    assert same(parts, whole)


def test_cotangents_of_sums_alone_are_enough(
    both: tuple[LocalTeachers, MicroBatchedTeachers], loaded: dict[str, Teacher]
) -> None:
    asked = question(loaded, 0)
    answers, _ = (teachers.forward(asked).result() for teachers in both)
    given = {n: TeacherOutput(None, sums=own.sums) for n, own in cotangents(answers).items()}
    whole, parts = (teachers.pullback(asked, given).result() for teachers in both)
    assert same(parts, whole)


def test_a_question_that_was_dropped_keeps_nothing(loaded: dict[str, Teacher]) -> None:
    whole = LocalTeachers(loaded)
    parts = MicroBatchedTeachers(whole, 2)
    asked = question(loaded, 0)
    parts.forward(asked).result()
    parts.drop(asked)
    assert [kept.kept_bytes for kept in whole._teachers.values()] == [0, 0]


def test_no_more_graphs_are_kept_than_the_cache_holds_and_the_rest_is_made_again(
    loaded: dict[str, Teacher],
) -> None:
    """Of five parts two are kept, and three made again."""
    teacher = loaded["one"]
    alone = RememberingTeacher(teacher, 1 << 30)
    asked = question({"one": teacher}, 0)
    alone.forward("k", asked.inputs[:1], depth=0, gate=None, wanted=EVERYTHING, precision="fp32")
    whole = LocalTeachers({"one": teacher}, int(2.5 * alone.kept_bytes))
    parts = MicroBatchedTeachers(whole, 1)
    some = Question(asked.inputs[:5], ("one",), EVERYTHING)
    given = cotangents(parts.forward(some).result())
    parts.pullback(some, given).result()
    assert whole._teachers["one"].recomputed == 3
