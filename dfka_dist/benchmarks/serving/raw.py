"""Measure 2: images a second through a server, against a bare loop over the same network."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dfka_dist import machine
from dfka_dist.benchmarks.serving.pools import pool_of
from dfka_dist.config import PRESETS
from dfka_dist.loading import load
from dfka_dist.models.preprocessing import Preprocessing, channels_last
from dfka_dist.models.sources import build, initial_weights, load_state
from dfka_dist.teachers.interface import Question, TeacherOutput, Wanted
from dfka_dist.teachers.served import ServedTeachers

COMPUTE = 0.05
"""Seconds that a forward with its pullback takes, about."""
BATCHES = 40
WINDOW = 4
"""Questions that are out at once."""

Table = dict[str, Any]


def server_speed(repetitions: int, say: Callable[[str], None]) -> Table:
    """Images a second of forward alone and of forward with pullback, both ways, in turns."""
    (spec, *_) = load(PRESETS / "fashion.yaml", []).teachers
    spec = spec.model_copy(update={"weights": None})
    network = nn.Sequential(Preprocessing(spec.input), build(spec, "teachers.0"))
    load_state(network[1], initial_weights([spec], 0)[spec.name].state, "teachers.0")
    network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    machine.compute_with(1)
    images = _images(network, spec.input.size)
    told: dict[str, list[float]] = {}
    with pool_of([spec], in_flight=WINDOW) as pool:
        ways: dict[str, Callable[[bool], float]] = {
            "raw": lambda back: _raw(network, images, back),
            "server": lambda back: _through(pool.teachers, spec.name, images, back),
        }
        for repetition in range(repetitions + 1):
            for back in (False, True):
                for way, run in ways.items():
                    speed = run(back)
                    if repetition:  # the first is to warm up
                        told.setdefault(f"{way}, {_named(back)}", []).append(speed)
    found: Table = {key: round(statistics.median(own), 1) for key, own in told.items()}
    for back in (False, True):
        ratio = found[f"server, {_named(back)}"] / found[f"raw, {_named(back)}"]
        found[f"server / raw, {_named(back)}"] = round(ratio, 3)
        say(f"{_named(back)}: server / raw {ratio:.3f}")
    return found | {"batch": len(images)}


def _named(back: bool) -> str:
    return "forward and pullback" if back else "forward"


def _images(network: nn.Module, size: int) -> Tensor:
    """As many as take the time."""
    images = torch.rand(64, 1, size, size)
    _raw(network, images, True, batches=3)
    speed = _raw(network, images, True, batches=10)
    return torch.rand(max(8, round(speed * COMPUTE)), 1, size, size)


def _raw(network: nn.Module, images: Tensor, back: bool, batches: int = BATCHES) -> float:
    began = time.perf_counter()
    for _ in range(batches):
        given = channels_last(images)
        if back:
            given = given.requires_grad_()
            logits = network(given)
            torch.autograd.grad(logits, given, torch.ones_like(logits))
        else:
            with torch.no_grad():
                network(given)
    return batches * len(images) / (time.perf_counter() - began)


def _through(teachers: ServedTeachers, name: str, images: Tensor, back: bool) -> float:
    began = time.perf_counter()
    out: deque[Any] = deque()
    coming: deque[Any] = deque()
    for _ in range(BATCHES):
        question = Question(images, (name,), Wanted(gradient=back))
        out.append((question, teachers.forward(question)))
        if len(out) >= WINDOW // 2:
            _answered(teachers, name, out, coming, back)
    while out:
        _answered(teachers, name, out, coming, back)
    while coming:
        coming.popleft().result()
    return BATCHES * len(images) / (time.perf_counter() - began)


def _answered(
    teachers: ServedTeachers, name: str, out: deque[Any], coming: deque[Any], back: bool
) -> None:
    question, pending = out.popleft()
    logits = pending.result()[name].logits
    if back:
        cotangents = {name: TeacherOutput(torch.ones_like(logits))}
        coming.append(teachers.pullback(question, cotangents))
        if len(coming) > 1:
            coming.popleft().result()
