"""Measure 3: bytes on the wire against the least possible, and what a request costs beyond
computing."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from dfka_dist.benchmarks.networks import sleeping_teacher
from dfka_dist.benchmarks.serving.pools import pool_of
from dfka_dist.config import PRESETS, Precision, RunConfig
from dfka_dist.loading import load
from dfka_dist.teachers.interface import Question, TeacherDescription, TeacherOutput, Wanted
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.server import Reply

MEGABYTES = (0.2, 2.0, 20.0)
SIZE = 32
"""Of the pictures, of one channel."""
REQUESTS = 20


@dataclass(frozen=True)
class Mode:
    """A kind of question about a batch to all teachers."""

    wanted: Wanted = field(default_factory=Wanted)
    depth: int = 0
    """0 for images, else features behind that block, with gates for each teacher."""
    wire: Precision = "fp32"


MODES = {
    "images, sums and gradient": Mode(Wanted(sums=True, gradient=True)),
    "labels alone": Mode(),
    "images, embedding and gradient": Mode(Wanted(embedding=True, gradient=True)),
    "features with gates, and their gradients": Mode(Wanted(gradient=True), depth=1),
    "images, sums and gradient, in bf16": Mode(Wanted(sums=True, gradient=True), wire="bf16"),
}

Table = dict[str, Any]


def bytes_on_the_wire(say: Callable[[str], None]) -> Table:
    """Of the first two kinds of question, which a joint step asks, and of others, on the fashion
    preset.

    What is counted are the arrays that travel between trainer and servers, and what Ray makes of a
    call and of its reply around them; not its own descriptions of tasks and arrays. `summed` is
    the ratio to what would be least if the teachers' gradients were one by the time they travel.
    """
    config = load(PRESETS / "fashion.yaml", [])
    specs = [spec.model_copy(update={"weights": None}) for spec in config.teachers]
    found: Table = {}
    with pool_of(specs) as pool:
        for name, mode in MODES.items():
            client = ServedTeachers(
                pool.descriptions, pool.replicas, in_flight=4, wire_precision=mode.wire
            )
            sent = _asked(client, config, mode)
            least = _least(client.descriptions, config, mode)
            summed = _least(client.descriptions, config, mode, gradients=1)
            found[name] = {
                "bytes": sent,
                "least": least,
                "ratio": round(sent / least, 4),
                "summed": round(sent / summed, 4),
            }
            say(f"{name}: {found[name]['ratio']} of the least possible bytes")
    return found


def beyond_compute(repetitions: int, say: Callable[[str], None]) -> Table:
    """Milliseconds of a forward with its pullback that no server was computing in, by batch."""
    spec = sleeping_teacher("idle", size=SIZE, forward=0.0, backward=0.0)
    found: Table = {}
    batches = {
        f"{megabytes} MB": torch.rand(round(megabytes * 1e6 / (4 * SIZE * SIZE)), 1, SIZE, SIZE)
        for megabytes in MEGABYTES
    }
    beyond: dict[str, list[float]] = {name: [] for name in batches}
    with pool_of([spec]) as pool:
        for _ in range(repetitions):
            for name, images in batches.items():
                beyond[name] += [_beyond(pool.teachers, images) for _ in range(REQUESTS)]
    for name, own in beyond.items():
        found[name] = round(1e3 * statistics.median(own), 2)
        say(f"{name}: {found[name]} ms beyond compute")
    return found


def _beyond(client: ServedTeachers, images: torch.Tensor) -> float:
    computed, began = client.worked, time.perf_counter()
    question = Question(images, ("idle",), Wanted(gradient=True))
    logits = client.forward(question).result()["idle"].logits
    assert logits is not None
    client.pullback(question, {"idle": TeacherOutput(torch.ones_like(logits))}).result()
    return time.perf_counter() - began - (client.worked - computed)


def _asked(client: ServedTeachers, config: RunConfig, mode: Mode) -> int:
    """Bytes of one question about a batch to all teachers, there and back."""
    before = client.traffic.sent + client.traffic.received
    calls = client.traffic.calls
    names, count = tuple(client.descriptions), config.training.batch_size
    shape = client.descriptions[names[0]].shapes[mode.depth]
    gates = {name: torch.rand(count, shape[0]) for name in names if mode.depth}
    inputs = torch.rand(count, *shape)
    question = Question(inputs, names, mode.wanted, mode.depth, gates)
    answers = client.forward(question).result()
    if mode.wanted.gradient:
        client.pullback(question, answers).result()
    arrays = client.traffic.sent + client.traffic.received - before
    return arrays + (client.traffic.calls - calls) * _envelope(client, question)


def _envelope(client: ServedTeachers, question: Question) -> int:
    """What Ray adds to the arrays of a call and of its reply."""
    serialize = ray._private.worker.global_worker.get_serialization_context().serialize
    call = client._call(question)
    client.traffic.calls -= 1
    reply = Reply((None,) * 5, 0.0)
    return int(serialize(call).total_bytes + serialize(reply).total_bytes)


def _least(
    descriptions: dict[str, TeacherDescription],
    config: RunConfig,
    mode: Mode,
    gradients: int | None = None,
) -> int:
    """Images or features once, and of every teacher its gates, logits, embedding and sums, the
    cotangents of what it answered, one gradient of the inputs and one of the gates.

    Args:
        gradients: of the inputs; None for one of every teacher.
    """
    wanted, number = mode.wanted, 2 if mode.wire == "bf16" else 4
    row = number * config.training.batch_size
    shape = next(iter(descriptions.values())).shapes[mode.depth]
    inputs, gates = row * math.prod(shape), row * shape[0] if mode.depth else 0
    back = len(descriptions) if gradients is None else gradients
    total = inputs + (back * inputs if wanted.gradient else 0)
    for known in descriptions.values():
        channels = sum(layer.channels for layer in known.layers)
        sums = 4 * (2 * channels + len(known.layers)) if wanted.sums else 0  # fp32 on any wire
        embedding = (known.embedding or 0) if wanted.embedding else 0
        answer = row * (len(known.spec.labels) + embedding) + sums
        total += gates + (2 * answer + gates if wanted.gradient else answer)
    return total
