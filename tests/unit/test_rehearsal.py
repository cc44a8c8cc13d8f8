"""Remembered images are altered on the way, and the teachers are asked what they are then."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from dfka_dist.config import RunConfig, Task, TeacherSpec
from dfka_dist.teachers.interface import Question
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.panel import Panel
from dfka_dist.training.rehearsal import Rehearsal
from dfka_dist.training.streams import Streams

BATCH = 8
STREAMS = Streams(0)
MakeRehearsal = Callable[..., Rehearsal]


@pytest.fixture(scope="module")
def make_teachers(
    make_teacher: Callable[..., TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> Callable[[Task], LocalTeachers]:
    """A factory of two teachers of different labels."""

    @cache
    def make(task: Task) -> LocalTeachers:
        specs = [make_teacher("one", "abc", task=task), make_teacher("two", "de", task=task)]
        return LocalTeachers({spec.name: load_teacher(spec) for spec in specs})

    return make


@pytest.fixture(scope="module")
def teachers(make_teachers: Callable[[Task], LocalTeachers]) -> LocalTeachers:
    return make_teachers("multi_label")


@pytest.fixture(scope="module")
def make_rehearsal(
    make_teachers: Callable[[Task], LocalTeachers], make_config: Callable[..., RunConfig]
) -> MakeRehearsal:
    """A factory of rehearsals of three steps: `make_rehearsal(columns, move=0.1)`."""

    def make(
        columns: range = range(BATCH),
        steps: int = 3,
        move: float = 0.15,
        mix: float = 0.75,
        task: Task = "multi_label",
        names: list[str] | None = None,
    ) -> Rehearsal:
        teachers = make_teachers(task)
        config = make_config([known.spec for known in teachers.descriptions.values()])
        memory = SampleMemory(columns=columns, capacity=10**6, streams=STREAMS)
        panel = Panel(config, teachers, columns, "fp32")
        for step in range(steps):
            # float16 is what the memory keeps
            images = STREAMS.uniform("images", step, columns, 256).half().float()
            own = {name: torch.full((len(columns), 3), float(step)) for name in panel.voices}
            memory.add(Labelled(images.reshape(-1, 1, 16, 16), own, panel.homes))
        return Rehearsal(memory, panel, STREAMS, move, mix, names)

    return make


def test_nothing_is_asked_while_nothing_is_remembered(make_rehearsal: MakeRehearsal) -> None:
    assert make_rehearsal(steps=0).ask(["x", "y"], 0).result() == []


def test_what_is_not_altered_keeps_the_answers_that_it_had(make_rehearsal: MakeRehearsal) -> None:
    rehearsal = make_rehearsal(move=0.0, mix=0.0)
    (batch,) = rehearsal.ask(["x"], 0).result()
    drawn = rehearsal.memory.draw("x", 0)
    assert torch.equal(batch.images, drawn.images)
    assert all(torch.equal(batch.logits[name], drawn.logits[name]) for name in drawn.logits)


def test_the_teachers_say_what_an_altered_image_is(
    make_rehearsal: MakeRehearsal, teachers: LocalTeachers
) -> None:
    rehearsal = make_rehearsal()
    (batch,) = rehearsal.ask(["x"], 0).result()
    assert not torch.equal(batch.images, rehearsal.memory.draw("x", 0).images)
    answers = teachers.forward(Question(batch.images, ("one", "two"))).result()
    for name, answer in answers.items():
        torch.testing.assert_close(batch.logits[name], answer.logits)


def test_a_teacher_that_is_not_to_be_asked_says_zeros_and_the_other_the_same(
    make_rehearsal: MakeRehearsal,
) -> None:
    (whole,) = make_rehearsal().ask(["x"], 0).result()
    (batch,) = make_rehearsal(names=["two"]).ask(["x"], 0).result()
    assert list(batch.logits) == list(whole.logits)
    assert torch.equal(batch.logits["one"], torch.zeros_like(whole.logits["one"]))
    torch.testing.assert_close(batch.logits["two"], whole.logits["two"])


def test_there_is_a_batch_for_every_stream(make_rehearsal: MakeRehearsal) -> None:
    """Of every second column, the next stream begins with the other ones."""
    rehearsal = make_rehearsal(move=0.0, mix=0.0)
    batches = rehearsal.ask(["x", "y"], 0, stride=2).result()
    drawn = [rehearsal.memory.draw("x", 0, 0, 2), rehearsal.memory.draw("y", 0, 1, 2)]
    for batch, own in zip(batches, drawn, strict=True):
        assert len(batch.images) == BATCH // 2
        assert torch.equal(batch.images, own.images)


def test_batches_that_are_asked_about_together_are_those_that_would_be_alone(
    make_rehearsal: MakeRehearsal,
) -> None:
    rehearsal = make_rehearsal()
    first, second = rehearsal.ask(["x", "y"], 0, stride=2).result()
    alone = rehearsal.ask(["x"], 0, stride=2).result()[0]
    torch.testing.assert_close(first.images, alone.images)
    torch.testing.assert_close(first.logits, alone.logits)
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize("stride", [1, 2])
def test_altered_images_keep_their_homes_and_ask_nobody_else(
    make_rehearsal: MakeRehearsal, stride: int
) -> None:
    rehearsal = make_rehearsal(task="single_label")
    (batch,) = rehearsal.ask(["x"], 1, stride).result()
    columns = torch.arange(0, BATCH, stride)
    assert torch.equal(batch.homes, columns // 2 % 2)
    for index, name in enumerate(batch.logits):
        heard = batch.logits[name].abs().sum(1) > 0
        assert torch.equal(heard, batch.homes == index)


def test_batches_differ_from_step_to_step_and_are_the_same_again(
    make_rehearsal: MakeRehearsal,
) -> None:
    rehearsal = make_rehearsal()
    one, other, again = (rehearsal.ask(["x"], step).result()[0].images for step in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("at", [2, 4, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_two_workers_rehearse_what_one_would(
    make_rehearsal: MakeRehearsal, at: int, stride: int
) -> None:
    whole, *shares = (
        make_rehearsal(columns).ask(["x"], 5, stride).result()[0]
        for columns in (range(BATCH), range(at), range(at, BATCH))
    )
    together = Labelled.joined(*shares)
    assert torch.equal(together.images, whole.images)
    torch.testing.assert_close(together.logits, whole.logits)
