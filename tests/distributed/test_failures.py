"""Servers die, and the caller notices only when nobody is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import ray
from ray._private import state as ray_state

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import RunFailed, TeacherUnavailable
from dfka_dist.models.sources import read_all_weights
from dfka_dist.teachers.interface import InputGradient, Question
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.placement import PlacementPlan
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.shards import Handle, Shards
from distributed.asking import (
    answered,
    cotangents,
    error,
    gradient_is_right,
    parts,
    pulled_back,
    question,
)
from distributed.conftest import MakePool, Nodes
from distributed.custom_teachers import SECONDS, SLOW

TOLERANCE = 1e-6
SOON = 20.0
"""Seconds within which a caller shall know that nobody is left."""


@dataclass(frozen=True)
class Survived:
    """A pullback whose server was killed after the forward, and the same one in this process."""

    got: InputGradient
    expected: InputGradient
    recomputed: int


@pytest.fixture(scope="module")
def mortal(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    """Teachers whose only server is started again when it dies."""
    with make_pool([specs["first"], specs["exact"]], restarts=20) as pool:
        yield pool


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def survived(request: pytest.FixtureRequest, mortal: TeacherPool, local: LocalTeachers) -> Survived:
    """At every depth."""
    asked = question(local, "first", request.param)
    got = pulled_back(mortal.teachers, asked, between=lambda: kill(mortal.servers["first"][0]))
    recomputed = ray.get(mortal.servers["first"][0].recomputed.remote())
    return Survived(got, pulled_back(local, asked), recomputed)


@pytest.fixture(scope="module")
def herd(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    """A teacher with servers that are not started again; every test takes living ones."""
    with make_pool([specs["first"]], replicas=5, restarts=0) as pool:
        yield pool


Take = Callable[[int], tuple[ServedTeachers, list[Handle]]]


@pytest.fixture
def take(herd: TeacherPool) -> Take:
    """A client of so many living servers, and these."""

    def take(count: int) -> tuple[ServedTeachers, list[Handle]]:
        states = {key: actor["State"] for key, actor in ray_state.actors().items()}
        alive = [s for s in herd.servers["first"] if states[s._actor_id.hex()] == "ALIVE"]
        assert len(alive) >= count
        return ServedTeachers(
            herd.descriptions,
            {"first": [Shards((server,)) for server in alive[:count]]},
            in_flight=4,
        ), alive

    return take


def asked_of(client: ServedTeachers, asked: Question) -> Handle:
    """The server that has the graph."""
    return client._sent[asked.key].replicas["first"].shards.handles[0]


def kill(server: Handle) -> None:
    """Its process, as the kernel would do it."""
    os.kill(ray.get(server.pid.remote()), signal.SIGKILL)


def test_a_server_killed_between_forward_and_pullback_gives_the_same_gradient(
    survived: Survived,
) -> None:
    assert error(survived.got.inputs, survived.expected.inputs) <= TOLERANCE


def test_a_server_killed_between_forward_and_pullback_gives_the_same_gradient_of_gates(
    survived: Survived,
) -> None:
    if survived.expected.gate is None:  # images have none
        assert survived.got.gate is None
    else:
        assert error(survived.got.gate, survived.expected.gate) <= TOLERANCE


def test_the_server_that_takes_the_place_of_a_killed_one_makes_the_graph_again(
    survived: Survived,
) -> None:
    assert survived.recomputed >= 1


def test_the_gradient_is_right_although_a_server_was_killed_between_forward_and_pullback(
    mortal: TeacherPool,
) -> None:
    deaths = iter([lambda: kill(mortal.servers["exact"][0])])  # once is enough
    assert gradient_is_right(mortal.teachers, "exact", 0, lambda: next(deaths, lambda: None)())


def test_a_question_that_is_out_when_its_server_dies_is_answered_all_the_same(
    mortal: TeacherPool, local: LocalTeachers
) -> None:
    asked = question(local, "first", 0, count=SLOW)
    victim = ray.get(mortal.servers["first"][0].pid.remote())
    pending = mortal.teachers.forward(asked)
    time.sleep(SECONDS / 2)  # it is being answered now
    os.kill(victim, signal.SIGKILL)
    there, here = parts(pending.result()["first"]), parts(answered(local, asked))
    assert max(error(a, b) for a, b in zip(there, here, strict=True)) <= TOLERANCE


def test_questions_go_to_another_replica_when_one_is_gone_for_good(
    take: Take, local: LocalTeachers
) -> None:
    client, servers = take(2)
    ray.kill(servers[0], no_restart=True)
    asked = question(local, "first", 0)
    expected = answered(local, asked).logits
    assert max(error(answered(client, asked).logits, expected) for _ in range(4)) <= TOLERANCE


def test_a_replica_that_is_gone_for_good_is_told_of(
    take: Take, local: LocalTeachers, caplog: pytest.LogCaptureFixture
) -> None:
    client, servers = take(2)
    ray.kill(servers[0], no_restart=True)
    for _ in range(4):
        answered(client, question(local, "first", 0))
    (told,) = (record.message for record in caplog.records if "asked no more" in record.message)
    assert told.startswith("a server of teacher first is asked no more: ")
    assert "ray.kill" in told and "\n" not in told


def test_a_pullback_goes_to_another_replica_when_its_own_is_gone_for_good(
    take: Take, local: LocalTeachers
) -> None:
    client, _ = take(2)
    asked = question(local, "first", 1)
    got = pulled_back(
        client, asked, between=lambda: ray.kill(asked_of(client, asked), no_restart=True)
    )
    assert error(got.inputs, pulled_back(local, asked).inputs) <= TOLERANCE


def test_what_a_replica_that_hangs_does_not_answer_is_asked_of_another(
    specs: dict[str, TeacherSpec], make_pool: MakePool, local: LocalTeachers
) -> None:
    """All that is out with it, after one wait; and it is asked no more."""
    asked, others = question(local, "first", 0), [question(local, "first", 1) for _ in range(3)]
    expected = [pulled_back(local, each).inputs for each in (asked, others[0])]
    with make_pool([specs["first"]], replicas=2, timeout=5.0) as pool:
        client = pool.teachers
        answer = {"first": cotangents(answered(client, asked))}
        pid = ray.get(asked_of(client, asked).pid.remote())
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            out = [client.forward(each) for each in others]
            got = client.pullback(asked, answer).result()["first"].inputs
            answers = [each.result()["first"] for each in out]
            back = client.pullback(others[0], {"first": cotangents(answers[0])}).result()["first"]
            waited = time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
    assert max(map(error, (got, back.inputs), expected)) <= TOLERANCE
    assert 5 <= waited < 10


def test_what_the_living_have_computed_is_told_although_one_is_dead(
    specs: dict[str, TeacherSpec], make_pool: MakePool
) -> None:
    with make_pool([specs["first"]], replicas=2, restarts=0) as pool:
        ray.kill(pool.servers["first"][0], no_restart=True)
        own = ray.get(pool.servers["first"][1].cpu_seconds.remote())
        assert own <= pool.cpu_seconds() < own + 1


def test_a_teacher_without_any_server_left_is_unavailable_soon(
    take: Take, local: LocalTeachers
) -> None:
    client, servers = take(1)
    ray.kill(servers[0], no_restart=True)
    began = time.monotonic()
    said = r"^teacher first has no server left: .*ray.kill.*serving.restarts[^\n]*$"
    with pytest.raises(TeacherUnavailable, match=said):
        answered(client, question(local, "first", 0))
    assert time.monotonic() - began < SOON


def test_a_teacher_whose_only_server_may_not_start_again_is_unavailable_once_it_is_killed(
    take: Take, local: LocalTeachers
) -> None:
    client, servers = take(1)
    asked = question(local, "first", 0)
    began = time.monotonic()
    with pytest.raises(TeacherUnavailable, match="teacher first has no server left"):
        pulled_back(client, asked, between=lambda: kill(servers[0]))
    assert time.monotonic() - began < SOON


def test_a_pool_that_gets_no_place_says_what_was_asked_and_what_is_free(
    cluster: Nodes, specs: dict[str, TeacherSpec], make_config: Callable[..., RunConfig]
) -> None:
    config = make_config([specs["first"]], serving={"start_timeout": 0.5})
    weights = read_all_weights(config.teachers)
    plan = PlacementPlan(({"CPU": 1000.0},), "PACK", (), {}, ())
    said = r"did not give \[\{'CPU': 1000.0\}\] within 0.5 s; free now: .*serving.start_timeout"
    with (
        pytest.raises(RunFailed, match=said),
        TeacherPool(config.teachers, weights, plan, config.serving, "x"),
    ):
        pytest.fail("the pool came up")


def test_a_server_that_cannot_load_its_teacher_ends_the_run_in_one_line(
    specs: dict[str, TeacherSpec], make_pool: MakePool
) -> None:
    spec = specs["first"].model_copy(update={"source": "not_there:network"})
    said = r"^a teacher's server did not start: .*cannot import not_there[^\n]*$"
    with pytest.raises(RunFailed, match=said), make_pool([spec]):
        pytest.fail("the pool came up")


def test_a_pool_that_was_left_has_stopped_its_servers(
    specs: dict[str, TeacherSpec], make_pool: MakePool, local: LocalTeachers
) -> None:
    with make_pool([specs["first"]]) as pool:
        teachers = pool.teachers
    with pytest.raises(TeacherUnavailable, match="teacher first has no server left"):
        answered(teachers, question(local, "first", 0))
