"""Who is answered when: clients beside each other, and replicas that are not equally fast."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
import torch

from dfka_dist.config import TeacherSpec
from dfka_dist.teachers.interface import Question
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from distributed.conftest import MakePool
from distributed.custom_teachers import BUSY, CPU_SECONDS

IN_FLIGHT = 4


class Client:
    """Asks question after question, and has some out at once."""

    def __init__(self, teachers: ServedTeachers, window: int) -> None:
        self._teachers, self._window, self._answered = teachers, window, 0

    def ask(self, questions: int) -> None:
        out: deque[Any] = deque()
        for _ in range(questions):
            out.append(self._teachers.forward(Question(torch.rand(BUSY, 1, 16, 16), ("first",))))
            if len(out) == self._window:
                self._receive(out)
        while out:
            self._receive(out)

    def answered(self) -> int:
        return self._answered

    def _receive(self, out: deque[Any]) -> None:
        out.popleft().result()
        self._answered += 1


MakeClient = Callable[[TeacherPool, int], Any]


@pytest.fixture
def elsewhere() -> Iterator[MakeClient]:
    """A factory of clients in processes of their own, as trials of a sweep are."""
    made: list[Any] = []

    def make(pool: TeacherPool, window: int) -> Any:
        remote = ray.remote(Client).options(num_cpus=0, max_concurrency=2)
        made.append(remote.remote(pool.teachers, window))
        return made[-1]

    yield make
    for client in made:
        ray.kill(client)


@pytest.fixture(scope="module")
def one(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    with make_pool([specs["first"]]) as pool:
        yield pool


@pytest.fixture(scope="module")
def two(specs: dict[str, TeacherSpec], make_pool: MakePool) -> Iterator[TeacherPool]:
    """Two replicas."""
    with make_pool([specs["first"]], replicas=2) as pool:
        yield pool


def test_clients_with_as_much_to_ask_are_answered_as_often(
    one: TeacherPool, elsewhere: MakeClient
) -> None:
    """A sweep shares the pool: its trials get on alike."""
    clients = [elsewhere(one, IN_FLIGHT) for _ in range(3)]
    ray.get([client.ask.remote(1) for client in clients])
    asking = [client.ask.remote(30) for client in clients]
    ray.wait(asking, num_returns=1)
    counts = ray.get([client.answered.remote() for client in clients])
    ray.get(asking)
    assert min(counts) >= 20


def test_a_client_with_little_to_ask_is_not_kept_waiting_by_one_with_much(
    one: TeacherPool, elsewhere: MakeClient
) -> None:
    """It waits for no more than the other may have out at once, however much that has to ask."""
    modest, greedy = elsewhere(one, 1), elsewhere(one, 100)
    ray.get([client.ask.remote(1) for client in (modest, greedy)])
    crowd = greedy.ask.remote(60)
    time.sleep(5 * CPU_SECONDS)
    ray.get(modest.ask.remote(6))
    overtaken = ray.get(greedy.answered.remote()) < 61
    ray.get(crowd)
    assert overtaken


def test_a_replica_that_is_slow_is_asked_less(two: TeacherPool) -> None:
    """Also by a client that takes its answers later, in the order in which it asked."""
    slow, fast = two.servers["first"]
    client = Client(two.teachers, IN_FLIGHT)
    client.ask(4)
    before = [ray.get(server.cpu_seconds.remote()) for server in (slow, fast)]
    with _slowed(ray.get(slow.pid.remote())):
        client.ask(40)
    after = [ray.get(server.cpu_seconds.remote()) for server in (slow, fast)]
    spent = [b - a for a, b in zip(before, after, strict=True)]
    assert sum(spent) >= 40 * CPU_SECONDS  # everything was computed by one of them
    assert spent[0] < 0.8 * spent[1]


@contextmanager
def _slowed(pid: int) -> Iterator[None]:
    """The process runs for a twentieth of the time."""
    over = threading.Event()

    def hinder() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.19)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.01)

    thread = threading.Thread(target=hinder)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)
