"""A teacher that is cut over several servers answers as a whole one does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import ray
import torch

from dfka_dist.config import TeacherSpec
from dfka_dist.errors import TeacherUnavailable
from dfka_dist.teachers.interface import Question, Teachers, Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from distributed.asking import (
    EVERYTHING,
    answered,
    cotangents,
    error,
    gradient_is_right,
    parts,
    pulled_back,
    question,
)
from distributed.conftest import MakePool

BOTH = ("first", "second")
DEPTHS = (0, 1, 2, 3)
TOLERANCE = 1e-6


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.exhaustive), 4])
def pool(
    request: pytest.FixtureRequest, specs: dict[str, TeacherSpec], make_pool: MakePool
) -> Iterator[TeacherPool]:
    """Every teacher in so many shards; with four, each part is alone."""
    with make_pool(list(specs.values()), shards=request.param, restarts=20) as pool:
        yield pool


@pytest.fixture(scope="module")
def cut(pool: TeacherPool) -> ServedTeachers:
    return pool.teachers


def narrow(asked: Question) -> Question:
    """The same, to be computed in bf16."""
    return Question(asked.inputs, asked.teachers, EVERYTHING, asked.depth, asked.gates, "bf16")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_cut_teacher_gives_equal_outputs(
    cut: ServedTeachers, local: LocalTeachers, name: str, depth: int
) -> None:
    asked = question(local, name, depth)
    pairs = zip(parts(answered(cut, asked)), parts(answered(local, asked)), strict=True)
    assert max(error(there, here) for there, here in pairs) <= TOLERANCE


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_cut_teacher_gives_equal_gradients(
    cut: ServedTeachers, local: LocalTeachers, name: str, depth: int
) -> None:
    asked = question(local, name, depth)
    there, here = pulled_back(cut, asked), pulled_back(local, asked)
    assert error(there.inputs, here.inputs) <= TOLERANCE
    if depth:
        assert error(there.gate, here.gate) <= TOLERANCE


@pytest.mark.parametrize("name", BOTH)
def test_nothing_is_rounded_between_shards_in_bf16(
    cut: ServedTeachers, local: LocalTeachers, name: str
) -> None:
    """A step of bf16 is 4e-3; servers have other threads, and so another order of sums."""
    asked = question(local, name, 0)
    pairs = zip(
        parts(answered(cut, narrow(asked))), parts(answered(local, narrow(asked))), strict=True
    )
    assert max(error(there, here) for there, here in pairs) <= TOLERANCE
    there, here = pulled_back(cut, narrow(asked)), pulled_back(local, narrow(asked))
    assert error(there.inputs, here.inputs) <= TOLERANCE


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_gradient_of_a_cut_teacher_is_that_of_its_answers(
    cut: ServedTeachers, depth: int
) -> None:
    assert gradient_is_right(cut, "exact", depth)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_cut_teacher_hands_out_the_same_tail(
    cut: ServedTeachers, local: LocalTeachers, depth: int
) -> None:
    there, here = cut.tail("first", depth), local.tail("first", depth)
    assert set(there) == set(here)
    assert all(torch.equal(there[key], value) for key, value in here.items())


def test_only_the_shards_behind_the_depth_are_asked(pool: TeacherPool) -> None:
    (replica,) = pool.replicas["first"]
    assert [replica.handles[-len(replica.asked(depth)) :] for depth in DEPTHS] == [
        tuple(
            h for h, begin in zip(replica.handles, ends(replica.begins), strict=True) if begin > d
        )
        for d in DEPTHS
    ]


def ends(begins: tuple[int, ...]) -> list[int]:
    """Where each shard is over; the last never."""
    return [*begins[1:], 99]


def test_what_flows_between_shards_does_not_come_to_the_client(
    cut: ServedTeachers, local: LocalTeachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches logits, embedding and sums, and one gradient."""
    get, fetched = ray.get, []

    def watched(references: object, **more: object) -> object:
        fetched.append(got := get(references, **more))
        return got

    monkeypatch.setattr(ray, "get", watched)
    asked = question(local, "first", 0)
    pulled_back(cut, asked)
    arrays = [a for got in fetched for reply in got for a in reply.arrays if a is not None]
    pictures = [array.shape for array in arrays if array.ndim == 4]
    assert pictures == [tuple(asked.inputs.shape)]


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_killed_between_forward_and_pullback_gives_the_same_gradient(
    pool: TeacherPool, local: LocalTeachers, shard: int
) -> None:
    asked = question(local, "first", 0)
    victim = pool.servers["first"][shard]
    pid = ray.get(victim.pid.remote())
    got = pulled_back(pool.teachers, asked, between=lambda: os.kill(pid, signal.SIGKILL))
    assert error(got.inputs, pulled_back(local, asked).inputs) <= TOLERANCE


def test_clients_do_not_wait_for_each_other_crosswise(
    pool: TeacherPool, local: LocalTeachers
) -> None:
    """Each asks and pulls back many questions at once, and all are answered."""
    expected = [pulled_back(local, question(local, "first", depth)) for depth in (0, 1)]
    errors: list[float] = []

    def client(depth: int) -> None:
        teachers = ServedTeachers(pool.descriptions, pool.replicas, in_flight=8, timeout=60)
        asked = [question(local, "first", depth) for _ in range(20)]
        out = [teachers.forward(each) for each in asked]
        back = [
            teachers.pullback(each, {"first": cotangents(answer.result()["first"])})
            for each, answer in zip(asked, out, strict=True)
        ]
        errors.extend(error(p.result()["first"].inputs, expected[depth].inputs) for p in back)

    threads = [threading.Thread(target=client, args=(depth,)) for depth in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(errors) == 80 and max(errors) <= TOLERANCE


@pytest.fixture
def pair(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    """Two replicas of two shards, which are not started again."""
    with make_pool([specs["first"]], shards=2, replicas=2, restarts=0) as pool:
        yield pool


@pytest.mark.parametrize("shard", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_replica_that_lost_a_shard_for_good_is_not_asked_again(
    pair: TeacherPool, local: LocalTeachers, shard: int
) -> None:
    """Its questions go to the other, and those without a place are refused by name."""
    asked = question(local, "first", 0)
    expected = pulled_back(local, asked).inputs

    def lose() -> None:
        replica = pair.teachers._sent[asked.key].replicas["first"].shards
        ray.kill(replica.handles[shard], no_restart=True)

    assert error(pulled_back(pair.teachers, asked, between=lose).inputs, expected) <= TOLERANCE
    assert error(pulled_back(pair.teachers, asked).inputs, expected) <= TOLERANCE
    for replica in pair.replicas["first"]:
        ray.kill(replica.handles[shard], no_restart=True)
    with pytest.raises(TeacherUnavailable, match="teacher first has no server left"):
        ask_plainly(pair.teachers, asked)


def ask_plainly(teachers: Teachers, asked: Question) -> None:
    teachers.forward(Question(asked.inputs, asked.teachers, Wanted())).result()
