"""Measure 3: bytes on the wire against the least possible, and what a request costs beyond
computing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from dfka_dist.benchmarks.networks import sleeping_teacher
from dfka_dist.benchmarks.serving.pools import pool_of
from dfka_dist.config import PRESETS, RunConfig
from dfka_dist.loading import load
from dfka_dist.teachers.interface import Question, TeacherDescription, TeacherOutput, Wanted
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.server import Reply

MEGABYTES = (0.2, 2.0, 20.0)
SIZE = 32
"""Of the pictures, of one channel."""
REQUESTS = 20
MODES = {"images, sums and gradient": Wanted(sums=True, gradient=True), "labels alone": Wanted()}

Table = dict[str, Any]


def bytes_on_the_wire(say: Callable[[str], None]) -> Table:
    """Of both kinds of question that a joint step asks, on the fashion preset.

    What is counted is what Ray makes of everything that travels between trainer and servers, its
    envelopes included.
    """
    config = load(PRESETS / "fashion.yaml", [])
    specs = [spec.model_copy(update={"weights": None}) for spec in config.teachers]
    found: Table = {}
    with pool_of(specs) as pool:
        client = pool.teachers
        for name, wanted in MODES.items():
            sent = _asked(client, config, wanted)
            least = _least(client.descriptions, config, wanted)
            found[name] = {"bytes": sent, "least": least, "ratio": round(sent / least, 4)}
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


def _asked(client: ServedTeachers, config: RunConfig, wanted: Wanted) -> int:
    """Bytes of one question about a batch to all teachers, there and back."""
    before = client.traffic.sent + client.traffic.received
    calls = client.traffic.calls
    image = config.teachers[0].input
    images = torch.rand(config.training.batch_size, image.channels, image.size, image.size)
    question = Question(images, tuple(client.descriptions), wanted)
    answers = client.forward(question).result()
    if wanted.gradient:
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


def _least(descriptions: dict[str, TeacherDescription], config: RunConfig, wanted: Wanted) -> int:
    """Images once, and of every teacher logits, sums, the cotangents of both, one gradient."""
    image, count = config.teachers[0].input, config.training.batch_size
    pictures = 4 * count * image.channels * image.size**2
    total = pictures
    for known in descriptions.values():
        channels = sum(layer.channels for layer in known.layers)
        sums = 4 * (2 * channels + len(known.layers)) if wanted.sums else 0
        answer = 4 * count * len(known.spec.labels) + sums
        total += 2 * answer + pictures if wanted.gradient else answer
    return total
