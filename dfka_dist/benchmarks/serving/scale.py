"""Measure 4: many teachers, replicas and clients on two cores, emulated by teachers that sleep."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import ray
import torch

from dfka_dist import machine
from dfka_dist.benchmarks.networks import sleeping_teacher
from dfka_dist.benchmarks.serving.pools import pool_of
from dfka_dist.teachers.interface import Question, TeacherOutput, Wanted
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers

SIZE, BATCH = 32, 50
"""0.2 MB of pictures."""
MANY = (1, 2, 4, 8, 16, 32)
POOLS = tuple(itertools.product((1, 8), (1, 2, 4)))
"""Teachers, and replicas of each."""
CLIENTS = (1, 2, 4)
STEPS = 10
PAUSE = 2.0
"""Seconds in which nothing is asked, to see what processes take that only wait."""

Table = dict[str, Any]
Say = Callable[[str], None]


class Client:
    """Asks all teachers about batch after batch, and has some questions out at once."""

    def __init__(self, teachers: ServedTeachers, window: int) -> None:
        torch.set_num_threads(1)
        self._teachers, self._window = teachers, window
        self._images = torch.rand(BATCH, 1, SIZE, SIZE)
        self._names = tuple(teachers.descriptions)

    def run(self, steps: int, many: int | None = None) -> tuple[float, float]:
        """Seconds that so many steps took, and that a server computed for them, the mean.

        Args:
            many: teachers that are asked, the first of all.
        """
        names = self._names[:many]
        computed, began = self._teachers.worked, time.perf_counter()
        asked: deque[Any] = deque()
        back: deque[Any] = deque()
        for _ in range(steps):
            question = Question(self._images, names, Wanted(gradient=True))
            asked.append((question, self._teachers.forward(question)))
            if len(asked) >= self._window:
                self._turn(asked, back)
        while asked:
            self._turn(asked, back)
        while back:
            back.popleft().result()
        return time.perf_counter() - began, self._teachers.worked - computed

    def _turn(self, asked: deque[Any], back: deque[Any]) -> None:
        question, pending = asked.popleft()
        given = {
            name: TeacherOutput(torch.ones_like(answer.logits))
            for name, answer in pending.result().items()
        }
        back.append(self._teachers.pullback(question, given))
        if len(back) >= self._window:
            back.popleft().result()


def steps_by_teachers(repetitions: int, say: Say) -> Table:
    """Seconds of a step, forward and pullback, with M teachers of 100 and 100 ms, of all that are
    there; one client with one question out.

    In such a step nothing hides what requests cost: the model is what a teacher computes, and then
    the CPU of all processes by the cores, without what they take while they only wait.
    """
    turns: dict[int, list[tuple[float, float]]] = {many: [] for many in MANY}
    waiting: list[float] = []
    with pool_of(_sleeping(max(MANY), 0.1, 0.1), in_flight=4) as pool:
        client, own = Client(pool.teachers, 1), psutil.Process()
        client.run(2)
        everyone = [own, *own.children(recursive=True)]
        for _ in range(repetitions):
            before = sum(map(_cpu, everyone))
            time.sleep(PAUSE)
            waiting.append((sum(map(_cpu, everyone)) - before) / PAUSE)
            for many, taken in turns.items():
                before = sum(map(_cpu, everyone))
                seconds = client.run(STEPS, many)[0] / STEPS
                taken.append((seconds, (sum(map(_cpu, everyone)) - before) / STEPS))
    idle = statistics.median(waiting)
    found: Table = {f"M = {many}": _step(many, taken, idle) for many, taken in turns.items()}
    for name, step in found.items():
        say(f"{name}, 100 + 100 ms: {step['seconds']} s a step")
    found["M = 8 / M = 1"] = round(found["M = 8"]["seconds"] / found["M = 1"]["seconds"], 3)
    found["cores of all that wait, of 32 servers"] = round(idle, 3)
    return found


def _step(many: int, turns: Sequence[tuple[float, float]], idle: float) -> Table:
    seconds, taken = (statistics.median(own) for own in zip(*turns, strict=True))
    cpu = max(0.0, taken - idle * seconds)
    return {
        "seconds": round(seconds, 4),
        "model": round(0.2 + cpu / machine.cores(), 4),
        "CPU ms a request, of all": round(1e3 * cpu / (2 * many), 2),
    }


def utilisation(repetitions: int, say: Say) -> list[Table]:
    """How busy servers are, by teachers, replicas and clients; 50 ms forward and 50 ms back.

    The model of a step is the most of what must happen one after another: the slowest teacher's
    computing by replica and client, and the CPU of servers, clients and Ray itself (which is the
    wire, on one machine) by the cores.
    """
    found = []
    for teachers, replicas in POOLS:
        specs = _sleeping(teachers, 0.05, 0.05)
        with pool_of(specs, replicas=replicas, in_flight=4) as pool:
            for clients in CLIENTS:
                found.append(_used(pool, teachers, replicas, clients, repetitions))
                say(", ".join(f"{key} {value}" for key, value in found[-1].items()))
    return found


def _used(pool: TeacherPool, teachers: int, replicas: int, clients: int, repetitions: int) -> Table:
    steps = max(STEPS, STEPS * replicas)
    remote = ray.remote(Client).options(num_cpus=0)
    many = [remote.remote(pool.teachers, 2 * replicas) for _ in range(clients)]
    ray.get([client.run.remote(2) for client in many])
    servers = [psutil.Process(pid) for pid in _pids(pool)]
    everyone = psutil.Process().children(recursive=True)
    elapsed, worked, own, cpu = zip(
        *(_turn(many, steps, servers, everyone) for _ in range(repetitions)), strict=True
    )
    for client in many:
        ray.kill(client)
    requests = 2 * steps * teachers * clients
    used = statistics.median(w / e for w, e in zip(worked, elapsed, strict=True))
    busy = statistics.median(cpu) / steps / machine.cores()
    return {
        "teachers": teachers,
        "replicas": replicas,
        "clients": clients,
        "utilisation": round(used, 3),
        "step": round(statistics.median(elapsed) / steps, 4),
        "model": round(max(0.1 * clients / replicas, busy), 4),
        "CPU ms a request, servers": round(1e3 * statistics.median(own) / requests, 2),
        "of all": round(1e3 * statistics.median(cpu) / requests, 2),
    }


def _turn(
    clients: Sequence[Any],
    steps: int,
    servers: Sequence[psutil.Process],
    everyone: Sequence[psutil.Process],
) -> tuple[float, float, float, float]:
    """Seconds that steps took, that a server worked in them, and CPU of servers and of all."""
    before, own, began = sum(map(_cpu, everyone)), sum(map(_cpu, servers)), time.perf_counter()
    told = ray.get([client.run.remote(steps) for client in clients])
    elapsed = time.perf_counter() - began
    worked = sum(worked for _, worked in told)
    return elapsed, worked, sum(map(_cpu, servers)) - own, sum(map(_cpu, everyone)) - before


def _sleeping(many: int, forward: float, backward: float) -> Sequence[Any]:
    return [
        sleeping_teacher(f"t{index}", size=SIZE, forward=forward, backward=backward)
        for index in range(many)
    ]


def _pids(pool: TeacherPool) -> list[int]:
    pids: list[int] = ray.get([h.pid.remote() for own in pool.servers.values() for h in own])
    return pids


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
