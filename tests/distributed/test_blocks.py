"""The dual generator block by block: its first block, and what depths are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dfka_dist.config import LossWeights, RunConfig, TeacherSpec
from dfka_dist.models.dual import DualBlock
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.target import trunk, trunk_shapes
from dfka_dist.teachers.interface import Question, TeacherOutput
from dfka_dist.teachers.local import LocalTeachers, Ready
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.blocks import generator_depth, link_into
from dfka_dist.training.dual import BlockDual, block_losses
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.supply import Synthesized
from dfka_dist.training.workshop import Workshop
from distributed.game import BATCH

pytestmark = pytest.mark.usefixtures("process_group")

LINK = 0.5


@pytest.fixture(scope="module")
def workshop(
    make_teacher: Callable[..., TeacherSpec],
    make_config: Callable[..., RunConfig],
    load_teacher: Callable[[TeacherSpec], Teacher],
    process_group: None,
) -> Workshop:
    spec = make_teacher("first", "abc")
    config = make_config(
        [spec],
        target={"arguments": {"widths": [4, 6, 8]}},
        generator={"latent": 6},
        training={"batch_size": BATCH, "precision": "fp32", "memory_megabytes": 1},
    )
    teachers = LocalTeachers({spec.name: load_teacher(spec)})
    return Workshop(config, teachers, [].append, torch.device("cpu"))


@pytest.fixture(scope="module")
def labelled(workshop: Workshop) -> Labelled:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, 16, 16, generator=random)
    return workshop.panel.labelled(images, workshop.panel.homes).result()


def first_block(workshop: Workshop) -> DualBlock:
    spec = workshop.branching.design().input
    with workshop.seeded(0):
        blocks = trunk("convnet", {"widths": [5]}, spec)
        return DualBlock(
            Preprocessing(spec),
            blocks,
            frozen=0,
            source=trunk_shapes(blocks, spec)[1],
            wanted=workshop.branching.wanted(1),
        )


def way(workshop: Workshop, labelled: Labelled, link: Tensor | None) -> Tensor:
    """That the first block goes in a step of plain SGD, with a rate of 1: the gradient."""
    block = first_block(workshop)
    engine = Engine(
        block, micro_batch=BATCH, zero_stage=1, precision="fp32", rate=1.0, optimizer="sgd"
    )
    weights = LossWeights(link=LINK)
    dual = BlockDual(engine=engine, panel=workshop.panel, entries={"first": 1}, weights=weights)
    before = flat(block)
    dual.learn(labelled, link, 1.0)
    after = flat(block)
    engine.destroy()
    return after - before


def flat(block: DualBlock) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in block.parameters()])


def test_the_first_block_goes_as_far_as_two_equal_streams_would_take_it(
    workshop: Workshop, labelled: Labelled
) -> None:
    """Eq. 15 and 16: both inputs are the image, so it is 1 + lambda_2 times one stream."""
    alone, both = (way(workshop, labelled, link) for link in (None, labelled.images))
    assert (both - (1 + LINK) * alone).norm() / both.norm() <= 1e-5


class Listed(LocalTeachers):
    """Teachers that know who was asked."""

    asked: list[str]

    def forward(self, question: Question) -> Ready[dict[str, TeacherOutput]]:
        self.asked += question.teachers
        return super().forward(question)


@pytest.mark.parametrize(("silent", "expected"), [(True, ["one"] * 2), (False, ["one", "two"] * 2)])
def test_a_teacher_that_counts_nothing_is_not_asked_about_a_block(
    pair: Pair, silent: bool, expected: list[str]
) -> None:
    lesson(pair, silent=silent)
    assert sorted(pair.teachers.asked) == sorted(expected)


def test_a_block_learns_the_same_without_asking_who_counts_nothing(pair: Pair) -> None:
    """Bit for bit, loss and step."""
    (loss, after), (expected, there) = (lesson(pair, silent=silent) for silent in (True, False))
    assert loss == expected and torch.equal(after, there)


@dataclass(frozen=True)
class Pair:
    """Two teachers behind blocks of one run, and what they said."""

    workshop: Workshop
    teachers: Listed
    labelled: Labelled


@pytest.fixture(scope="module")
def pair(
    make_teacher: Callable[..., TeacherSpec],
    make_config: Callable[..., RunConfig],
    load_teacher: Callable[[TeacherSpec], Teacher],
    process_group: None,
) -> Pair:
    specs = [make_teacher("one", "abc"), make_teacher("two", "cd", widths=(5, 6, 7))]
    config = make_config(
        specs,
        target={"arguments": {"widths": [4, 6, 8]}},
        generator={"latent": 6},
        training={"batch_size": BATCH, "precision": "fp32", "memory_megabytes": 1},
    )
    teachers = Listed({spec.name: load_teacher(spec) for spec in specs})
    teachers.asked = []
    workshop = Workshop(config, teachers, [].append, torch.device("cpu"))
    images = torch.rand(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Pair(workshop, teachers, workshop.panel.labelled(images, workshop.panel.homes).result())


def lesson(pair: Pair, *, silent: bool) -> tuple[float, Tensor]:
    """Loss of a step of the first block, and its parameters then; `two` has lambda 0.

    Args:
        silent: as it is; otherwise it is asked all the same.
    """
    block = first_block(pair.workshop)
    engine = Engine(
        block, micro_batch=BATCH, zero_stage=1, precision="fp32", rate=1.0, optimizer="sgd"
    )
    entries, weights = {"one": 1, "two": 1}, LossWeights(distill={"two": 0.0})
    dual = BlockDual(engine=engine, panel=pair.workshop.panel, entries=entries, weights=weights)
    if not silent:
        dual._asked = entries
    pair.teachers.asked.clear()
    with pair.workshop.seeded(0):
        link = torch.rand_like(pair.labelled.images)
    report = dual.learn(pair.labelled, link, 1.0)
    after = flat(block)
    engine.destroy()
    return report.total.item(), after


@pytest.mark.parametrize(
    ("of", "groups", "depths"),
    [
        (4, 4, {1: 1, 2: 2, 3: 3}),  # block b eats what lies at depth b - 1, made by group B+1-b
        (4, 2, {1: 1, 2: 1, 3: 1}),
        (2, 4, {1: 2}),
        (3, 3, {1: 1, 2: 2}),
    ],
)
def test_a_link_lies_as_deep_in_the_generator_as_its_block_begins(
    of: int, groups: int, depths: dict[int, int]
) -> None:
    """Eq. 15: F_2 = G^{B+1-b}..G^1(z)."""
    assert {depth: generator_depth(depth, of, groups) for depth in depths} == depths


def test_the_link_into_a_block_is_what_the_group_of_its_depth_made(
    workshop: Workshop, supply: Synthesized
) -> None:
    """Eq. 15 for B = 3: the image, then F_g^2, then F_g^1."""
    stack = supply.draws.synthesize(supply.generator, "x", 0, supply.columns)
    links = [link_into(workshop, stack, depth) for depth in (1, 2, 3)]
    made = [stack.images, *(each.feature for each in reversed(stack.features))]
    assert all(link is own for link, own in zip(links, made, strict=True))


def test_a_generator_of_one_group_has_a_link_into_the_first_block_alone(
    workshop: Workshop, supply: Synthesized
) -> None:
    stack = supply.draws.synthesize(supply.generator, "x", 0, supply.columns)
    shallow = stack._replace(features=[])
    assert link_into(workshop, shallow, 1) is stack.images
    assert link_into(workshop, shallow, 2) is None


def test_measuring_a_depth_moves_nothing(workshop: Workshop, labelled: Labelled) -> None:
    block = first_block(workshop)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    weights = LossWeights()
    found = block_losses(block, labelled, workshop.panel, {"first": 1}, weights)
    assert found["first"].isfinite() and not found["first"].requires_grad
    assert all(value.equal(before[name]) for name, value in block.state_dict().items())


@pytest.fixture
def supply(workshop: Workshop, labelled: Labelled) -> Synthesized:
    """A generator, and a memory of other images."""
    memory = workshop.new_memory()
    memory.add(labelled)
    return Synthesized(
        workshop.new_generator(),
        workshop.draws,
        workshop.panel,
        workshop.columns,
        workshop.rehearsal(memory),
        window=2,
    )


def test_a_student_learns_from_what_is_remembered(supply: Synthesized) -> None:
    (batch,) = supply.batches("x", range(1))
    (rehearsed,) = supply.rehearsal.ask(["x"], 0).result()
    assert torch.equal(batch.images, rehearsed.images)


def test_depths_are_measured_on_fresh_images_alone(supply: Synthesized) -> None:
    (unseen,) = supply.unseen("x", range(1))
    drawn = supply.draws.synthesize(supply.generator, "x", 0, supply.columns)
    assert torch.equal(unseen.images, drawn.images)


def test_a_student_learns_from_fresh_images_where_nothing_is_remembered(
    workshop: Workshop, supply: Synthesized
) -> None:
    forgetful = replace(supply, rehearsal=workshop.rehearsal(workshop.new_memory()))
    (batch,), (unseen,) = forgetful.batches("x", range(1)), forgetful.unseen("x", range(1))
    assert torch.equal(batch.images, unseen.images)
