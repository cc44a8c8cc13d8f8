"""Recipe paper's dual stage by teachers that differ: what its blocks begin with, and every depth's
loss, against the same worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.blocks import MEASURED, dual_losses, train_blocks
from dfka_dist.training.checkpoint import State, under
from dfka_dist.training.engines import Engine
from dfka_dist.training.regroup import DualState
from dfka_dist.training.supply import Synthesized
from dfka_dist.training.workshop import Workshop
from distributed.recipes import DEPTHS
from distributed.test_engines import UncutTeacher

pytestmark = pytest.mark.usefixtures("process_group")

BATCH, STEPS = 8, 3
LABELS = ["d", "a", "c"]
"""Of each teacher one is not wanted."""


class Watching(Workshop):
    """It keeps what its engines began with, and their networks."""

    begun: list[tuple[State, Engine]]

    def engine(
        self, network: torch.nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> Engine:
        made = super().engine(network, rate, betas)
        self.begun.append((made.state(), made))
        return made


@pytest.fixture(scope="module")
def opinionated(make_teacher: Callable[..., TeacherSpec]) -> list[TeacherSpec]:
    """A softmax teacher of three blocks and a sigmoid teacher of two, whose answers differ widely
    from image to image: those of random networks hardly do."""
    specs = [
        make_teacher("one", "abc", task="single_label", channels=3),
        make_teacher("two", "de", widths=(5, 6), size=12),
    ]
    for spec in specs:
        assert spec.weights is not None
        state = load_file(spec.weights)
        louder = {name: 30 * value for name, value in state.items() if "classifier" in name}
        save_file(state | louder, spec.weights)
    return specs


@dataclass(frozen=True)
class Trained:
    workshop: Workshop
    supply: Synthesized
    dual: DualState
    stages: dict[int, tuple[State, State]]
    """By the block that is trained: the network's state at the stage's beginning and end."""


@pytest.fixture(
    scope="module", params=[1, pytest.param(3, marks=pytest.mark.exhaustive)], ids="zero {}".format
)
def trained(
    request: pytest.FixtureRequest,
    opinionated: list[TeacherSpec],
    make_config: Callable[..., RunConfig],
    load_teacher: Callable[[TeacherSpec], Teacher],
    process_group: None,
) -> Trained:
    """The dual stage behind a generator that learned nothing, and a memory of other images."""
    config = make_config(
        opinionated,
        target={"labels": LABELS, "arguments": {"widths": [4, 6, 8]}},
        generator={"latent": 6},
        losses={"group": 0.3},
        training={
            "recipe": "paper",
            "block_steps": STEPS,
            "dual_rate": 0.3,
            "batch_size": BATCH,
            "precision": "fp32",
            "memory_megabytes": 1,
            "zero_stage": request.param,
        },
    )
    teachers = LocalTeachers({spec.name: load_teacher(spec) for spec in opinionated})
    workshop = Watching(config, teachers, [].append, torch.device("cpu"))
    workshop.begun = []
    memory = workshop.new_memory()
    squares = torch.rand(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    others = squares.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    memory.add(workshop.panel.labelled(others, workshop.panel.homes).result())
    supply = Synthesized(
        workshop.new_generator(),
        workshop.draws,
        workshop.panel,
        workshop.columns,
        workshop.rehearsal(memory),
        window=2,
    )
    with workshop.ledger.phase("dual", STEPS * len(DEPTHS)) as phase:
        dual = train_blocks(workshop, supply, phase)
    stages = {d: (state, own.state()) for d, (state, own) in enumerate(workshop.begun, 1)}
    return Trained(workshop, supply, dual, stages)


# every block behind those before it


@pytest.mark.parametrize(("stage", "block"), [(2, 1), (3, 1), (3, 2)])
def test_a_stage_begins_with_the_blocks_that_were_trained_before_it(
    trained: Trained, stage: int, block: int
) -> None:
    begun, _ = trained.stages[stage]
    assert same(under(begun, f"blocks.{block - 1}."), trained.dual.blocks[block])


@pytest.mark.parametrize(("stage", "block"), [(2, 1), (3, 1), (3, 2)])
def test_a_stage_leaves_the_blocks_before_it_as_they_were(
    trained: Trained, stage: int, block: int
) -> None:
    """Parameters, and the running statistics too."""
    begun, ended = (under(state, f"blocks.{block - 1}.") for state in trained.stages[stage])
    assert same(begun, ended)


@pytest.mark.parametrize("stage", DEPTHS)
def test_every_tensor_of_its_own_block_moves_in_a_stage(trained: Trained, stage: int) -> None:
    begun, ended = (under(state, f"blocks.{stage - 1}.") for state in trained.stages[stage])
    assert same(ended, trained.dual.blocks[stage])
    assert not any(torch.equal(begun[name], value) for name, value in ended.items())


# what depths are measured by


def by_hand(trained: Trained, opinionated: list[TeacherSpec], depth: int) -> dict[str, float]:
    """Eq. 13 of the target whose branches all leave at a depth, by what the uncut teachers say of
    fresh images, each of those that are at home with it; of a sigmoid teacher the wanted labels."""
    workshop, supply = trained.workshop, trained.supply
    design = workshop.branching.design(workshop.branching.everywhere(depth))
    target = trained.dual.target(design, workshop.teachers).eval()
    homes = workshop.panel.homes
    found: dict[str, list[Tensor]] = {spec.name: [] for spec in opinionated}
    for step in range(MEASURED):
        made = supply.draws.synthesize(supply.generator, "measure", step, supply.columns)
        for home, spec in enumerate(opinionated):
            own = made.images[homes == home]
            heard = range(3) if spec.task == "single_label" else [spec.labels.index("d")]
            with torch.no_grad():
                said, truth = target(own)[spec.name], UncutTeacher(spec)(own)[0][:, list(heard)]
            found[spec.name].append(losses.distill(said, truth, spec.task))
    return {name: torch.stack(parts).mean().item() for name, parts in found.items()}


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_depth_is_measured_by_the_target_that_is_regrouped_there(
    trained: Trained, opinionated: list[TeacherSpec], depth: int
) -> None:
    found = dual_losses(trained.workshop, trained.dual, trained.supply)
    expected = by_hand(trained, opinionated, depth)
    assert {name: own[depth] for name, own in found.items()} == pytest.approx(expected, rel=3e-5)


def same(one: State, other: State) -> bool:
    assert one and one.keys() == other.keys()
    return all(torch.equal(other[name], value) for name, value in one.items())
