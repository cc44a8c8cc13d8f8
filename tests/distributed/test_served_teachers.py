"""Teachers in actors answer as teachers in this process do, and are asked all at once."""

from __future__ import annotations

import re
import threading
import time
import urllib.request

import pytest
import ray
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from dfka_dist.config import TeacherSpec
from dfka_dist.errors import RunFailed, TeacherUnavailable
from dfka_dist.teachers.interface import Question, Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.meters import Watch
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from distributed.asking import (
    answered,
    cotangents,
    error,
    gradient_is_right,
    parts,
    pulled_back,
    question,
)
from distributed.conftest import MakePool
from distributed.custom_teachers import FAILING, HUGE, SECONDS, SLOW

BOTH = ("first", "second")
DEPTHS = (0, 1, 2, 3)
TOLERANCE = 1e-6


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", DEPTHS)
def test_served_and_local_teachers_give_equal_outputs(
    served: ServedTeachers, local: LocalTeachers, name: str, depth: int
) -> None:
    asked = question(local, name, depth)
    pairs = zip(parts(answered(served, asked)), parts(answered(local, asked)), strict=True)
    assert max(error(there, here) for there, here in pairs) <= TOLERANCE


def test_an_exact_client_rounds_nothing_although_the_wire_does(
    specs: dict[str, TeacherSpec], make_pool: MakePool, local: LocalTeachers
) -> None:
    """Images and answers."""
    asked = question(local, "first", 0)
    expected = answered(local, asked).logits
    with make_pool([specs["first"]], wire="bf16") as pool:
        clients = pool.teachers, pool.teachers.exact()
        rounded, exact = (error(answered(own, asked).logits, expected) for own in clients)
    assert exact <= TOLERANCE < 1e-4 < rounded < 1e-2  # a step of bf16 is 4e-3


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", DEPTHS)
def test_served_and_local_teachers_give_equal_gradients_of_their_inputs(
    served: ServedTeachers, local: LocalTeachers, name: str, depth: int
) -> None:
    asked = question(local, name, depth)
    there, here = pulled_back(served, asked), pulled_back(local, asked)
    assert error(there.inputs, here.inputs) <= TOLERANCE


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", DEPTHS[1:])
def test_served_and_local_teachers_give_equal_gradients_of_their_gates(
    served: ServedTeachers, local: LocalTeachers, name: str, depth: int
) -> None:
    asked = question(local, name, depth)
    there, here = pulled_back(served, asked), pulled_back(local, asked)
    assert error(there.gate, here.gate) <= TOLERANCE


def test_float64_stays_float64_on_the_wire(served: ServedTeachers, local: LocalTeachers) -> None:
    asked = question(local, "exact", 1, dtype=torch.float64)
    got = pulled_back(served, asked)
    kinds = {value.dtype for value in (*parts(answered(served, asked)), got.inputs, got.gate)}
    assert kinds == {torch.float64}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_gradient_of_a_served_teacher_is_that_of_its_answers(
    served: ServedTeachers, depth: int
) -> None:
    assert gradient_is_right(served, "exact", depth)


def test_a_graph_that_was_evicted_is_made_again(
    pool: TeacherPool, served: ServedTeachers, local: LocalTeachers
) -> None:
    (server,) = pool.servers["first"]
    before = ray.get(server.recomputed.remote())
    pulled_back(served, question(local, "first", 0, count=500))  # too large for the cache
    assert ray.get(server.recomputed.remote()) == before + 1


def test_the_gradient_of_a_graph_that_was_evicted_is_the_same(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    asked = question(local, "first", 0, count=500)
    assert error(pulled_back(served, asked).inputs, pulled_back(local, asked).inputs) <= TOLERANCE


def test_a_graph_that_was_kept_is_not_made_again(
    pool: TeacherPool, served: ServedTeachers, local: LocalTeachers
) -> None:
    (server,) = pool.servers["first"]
    before = ray.get(server.recomputed.remote())
    pulled_back(served, question(local, "first", 0))
    assert ray.get(server.recomputed.remote()) == before


def test_a_batch_is_put_once_however_many_teachers_read_it(
    served: ServedTeachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, values = ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: values.append(value) or put(value))
    served.forward(Question(torch.rand(4, 3, 16, 16), BOTH)).result()
    assert len(values) == 1


def test_a_pullback_puts_nothing(served: ServedTeachers, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Question(torch.rand(4, 3, 16, 16), BOTH, Wanted(gradient=True))
    answers = served.forward(asked).result()
    values: list[object] = []
    monkeypatch.setattr(ray, "put", values.append)
    served.pullback(asked, answers).result()
    assert values == []


def test_a_gate_is_sent_once_for_forward_and_pullback(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    asked, before = question(local, "first", 1), served.traffic.sent
    given = cotangents(answered(served, asked))
    assert served.traffic.sent - before == asked.inputs.nbytes + asked.gates["first"].nbytes
    before = served.traffic.sent
    served.pullback(asked, {"first": given}).result()
    assert given.sums is not None
    assert served.traffic.sent - before == sum(
        value.nbytes for value in (*parts(given), given.sums.count)
    )


def test_all_teachers_are_asked_before_any_is_awaited(served: ServedTeachers) -> None:
    began = time.monotonic()
    served.forward(Question(torch.rand(SLOW, 3, 16, 16), BOTH)).result()
    assert time.monotonic() - began < 1.9 * SECONDS


def test_asking_does_not_wait_for_the_answer(served: ServedTeachers) -> None:
    began = time.monotonic()
    pending = served.forward(Question(torch.rand(SLOW, 3, 16, 16), BOTH))
    asked = time.monotonic() - began
    pending.result()
    assert asked < SECONDS / 2


def test_asking_waits_when_too_many_answers_are_outstanding(pool: TeacherPool) -> None:
    client = ServedTeachers(pool.descriptions, pool.replicas, in_flight=1)
    slow = client.forward(Question(torch.rand(SLOW, 1, 16, 16), ("first",)))
    began = time.monotonic()
    next_one = client.forward(Question(torch.rand(4, 1, 16, 16), ("first",)))
    waited = time.monotonic() - began
    slow.result(), next_one.result()
    assert waited > SECONDS / 2


@pytest.mark.parametrize("error", [ObjectStoreFullError, OutOfDiskError])
def test_a_batch_that_fits_into_no_store_says_so(
    served: ServedTeachers, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """By what Ray raises where the store is full, and the disk that it spills to."""

    def put(value: object) -> None:
        raise error("no room")

    monkeypatch.setattr(ray, "put", put)
    said = r"a batch of 4 MiB does not fit into Ray's object store: a smaller training.batch_size"
    with pytest.raises(RunFailed, match=said):
        served.forward(Question(torch.rand(4096, 1, 16, 16), ("first",)))


def test_time_spent_waiting_for_answers_is_counted(served: ServedTeachers) -> None:
    before = served.waited
    served.forward(Question(torch.rand(SLOW, 1, 16, 16), ("first",))).result()
    assert served.waited - before > SECONDS / 2


def test_what_another_thread_waits_is_not_this_ones(served: ServedTeachers) -> None:
    """A trainer's helper waits while the trainer computes."""
    before, beside = served.waited, served.waited_beside
    pending = served.forward(Question(torch.rand(SLOW, 1, 16, 16), ("first",)))
    helper = threading.Thread(target=pending.result)
    helper.start(), helper.join()
    assert served.waited - before < SECONDS / 2
    assert served.waited_beside - beside > SECONDS / 2


def test_an_answer_that_does_not_come_in_time_is_given_up(pool: TeacherPool) -> None:
    client = ServedTeachers(pool.descriptions, pool.replicas, in_flight=4, timeout=0.1)
    pending = client.forward(Question(torch.rand(SLOW, 1, 16, 16), ("first",)))
    with pytest.raises(TeacherUnavailable, match=r"teacher first did not answer within 0\.1 s"):
        pending.result()


def test_a_teacher_that_raises_ends_the_run_with_its_name_and_what_it_said(
    served: ServedTeachers,
) -> None:
    pending = served.forward(Question(torch.rand(FAILING, 1, 16, 16), ("first",)))
    with pytest.raises(RunFailed, match="teacher first failed: this teacher cannot count"):
        pending.result()


def test_a_batch_that_can_never_fit_is_refused_with_its_size_and_the_remedy(
    served: ServedTeachers,
) -> None:
    pending = served.forward(Question(torch.rand(HUGE, 1, 16, 16), ("first",)))
    said = rf"teacher first has no memory for {HUGE} images at once: training\.micro_batch"
    with pytest.raises(RunFailed, match=said):
        pending.result()


def test_a_teacher_that_raised_answers_the_next_question(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    pending = served.forward(Question(torch.rand(FAILING, 1, 16, 16), ("first",)))
    with pytest.raises(RunFailed):
        pending.result()
    asked = question(local, "first", 0)
    assert error(answered(served, asked).logits, answered(local, asked).logits) <= TOLERANCE


def test_tails_are_the_same_wherever_the_teacher_lives(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    there, here = served.tail("second", 1), local.tail("second", 1)
    assert list(there) == list(here) and all(torch.equal(there[k], here[k]) for k in here)


def test_a_client_that_was_sent_to_another_process_asks_the_same_servers(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    asked = question(local, "first", 0)
    elsewhere = ray.remote(num_cpus=0)(answered)
    logits = ray.get(elsewhere.remote(served, asked)).logits
    assert error(logits, answered(local, asked).logits) <= TOLERANCE


@pytest.mark.exhaustive
@pytest.mark.parametrize("shards", [1, 2])
def test_compiled_teachers_give_equal_answers_and_gradients(
    specs: dict[str, TeacherSpec], make_pool: MakePool, local: LocalTeachers, shards: int
) -> None:
    """Statistics and all; what is heard inside the blocks is heard of compiled ones too."""
    asked = question(local, "second", 0)
    with make_pool([specs["second"]], compile=True, shards=shards) as pool:
        pairs = zip(
            parts(answered(pool.teachers, asked)), parts(answered(local, asked)), strict=True
        )
        assert max(error(there, here) for there, here in pairs) <= 1e-5
        got = pulled_back(pool.teachers, asked)
    assert error(got.inputs, pulled_back(local, asked).inputs) <= 1e-5


# seen from outside

METERS = {
    "ray_dfka_teacher_requests_total",
    "ray_dfka_teacher_queue_seconds_count",
    "ray_dfka_teacher_compute_seconds_count",
    "ray_dfka_teacher_bytes_total",
    "ray_dfka_teacher_graph_hits_total",
    "ray_dfka_teacher_graph_bytes",
    "ray_dfka_teacher_in_flight",
    "ray_dfka_client_wait_seconds_total",
}


def test_what_servers_and_clients_do_can_be_read_from_outside(
    served: ServedTeachers, local: LocalTeachers
) -> None:
    """From the node's own port for Prometheus; Ray hands figures on every few seconds."""
    port = ray.nodes()[0]["MetricsExportPort"]
    found: set[str] = set()
    for _ in range(30):
        pulled_back(served, question(local, "first", 0))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            found = set(re.findall(r"^ray_dfka_\w+", page.read().decode(), re.MULTILINE))
        if found >= METERS:
            break
        time.sleep(1)
    assert found >= METERS


def test_how_long_servers_have_worked_for_a_client_is_counted(pool: TeacherPool) -> None:
    """The mean over all servers."""
    client = ServedTeachers(pool.descriptions, pool.replicas, in_flight=4)
    client.forward(Question(torch.rand(SLOW, 1, 16, 16), ("first",))).result()
    servers = sum(len(own) for own in pool.servers.values())
    assert SECONDS <= client.worked * servers < 3 * SECONDS


def test_what_is_fetched_meanwhile_does_not_count_as_computing() -> None:
    watch = Watch()
    with watch.computing():
        time.sleep(0.02)
        with watch.fetching():
            time.sleep(0.2)
    assert 0.02 <= watch.seconds < 0.2
