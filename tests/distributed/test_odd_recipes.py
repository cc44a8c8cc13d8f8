"""Whole runs by a softmax teacher without BatchNorm, and by a sigmoid teacher whose export fits one
batch size alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfka_dist.config import TeacherSpec
from dfka_dist.models.chaining import ModuleStage
from dfka_dist.models.sources import read_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.checkpoint import under
from distributed.conftest import MakePool
from distributed.custom_teachers import not_exportable, without_batch_norm
from distributed.recipes import DEPTHS, LABELS, PHASES, Ran, Run
from distributed.test_recipes import flat

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def odd(
    make_teacher: Callable[..., TeacherSpec], tmp_path_factory: pytest.TempPathFactory
) -> list[TeacherSpec]:
    bare = make_teacher("one", "abc", task="single_label", channels=3)
    return [
        without_batch_norm(bare, tmp_path_factory.mktemp("bare")),
        not_exportable(make_teacher("two", "de", widths=(5, 6), size=12)),
    ]


@pytest.fixture(scope="module", params=[("joint", 1), ("paper", 1), ("joint", 3)], ids=str)
def ran(request: pytest.FixtureRequest, run: Run, odd: list[TeacherSpec]) -> Ran:
    name, zero_stage = request.param
    losses = {"batch_norm": 1.0}
    return run(name, specs=odd, losses=losses, zero_stage=zero_stage, fine_tune_steps=0)


def test_the_teachers_are_as_odd_as_they_should_be(
    odd: list[TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> None:
    bare, other = map(load_teacher, odd)
    assert bare.description.layers == () and len(other.description.layers) == 2
    assert all(isinstance(stage, ModuleStage) for stage in other.chain.stages)


def test_every_number_of_every_network_and_every_loss_are_finite(ran: Ran) -> None:
    values = [value for record in ran.records for value in record["losses"].values()]
    assert values and torch.tensor(values).isfinite().all()
    assert all(flat(network.state).isfinite().all() for network in ran.outcome.networks)


def test_only_the_statistics_that_are_there_are_matched(ran: Ran) -> None:
    first = ran.outcome.phases[0]["name"]
    found = [record["losses"]["batch_norm"] for record in ran.records if record["phase"] == first]
    assert found and all(value > 0 for value in found)


def test_a_recipe_has_its_phases(ran: Ran) -> None:
    """And one more where the best branches leave at unequal depths."""
    losses = ran.outcome.dual_losses.values()
    uneven = len({min(own, key=lambda depth: own[depth]) for own in losses}) > 1
    wanted = list(PHASES[ran.name])
    if uneven and "branches" in wanted:
        wanted.insert(wanted.index("branches") + 1, "chosen")
    assert [phase["name"] for phase in ran.outcome.phases] == wanted


def test_every_depth_is_measured_and_there_is_a_target_of_each(ran: Ran) -> None:
    measured = {name: tuple(own) for name, own in ran.outcome.dual_losses.items()}
    assert measured == {"one": DEPTHS, "two": DEPTHS}
    designs = [network.design for network in ran.outcome.networks]
    for depth in DEPTHS:
        even = [design for design in designs if {b.depth for b in design.branches} == {depth}]
        assert even, f"no target that branches at {depth}"


def test_the_tails_of_every_target_are_the_teachers_own(ran: Ran, odd: list[TeacherSpec]) -> None:
    """Of all tensors that a tail has, bit for bit, as nothing is fine-tuned."""
    for spec in odd:
        file = read_weights(spec, spec.name).state
        for network in ran.outcome.networks:
            tail = under(network.state, f"tails.{spec.name}.")
            own = {k.partition(".")[2].removeprefix("network."): v for k, v in tail.items()}
            assert {"classifier.weight", "classifier.bias"} <= own.keys() <= file.keys()
            assert all(torch.equal(file[name], value) for name, value in own.items())


def test_the_saved_target_predicts_what_the_outcome_predicts(ran: Ran, tmp_path: Path) -> None:
    target = TargetNet(ran.outcome.design)
    target.load_state_dict(ran.outcome.state)
    target.eval().save_pretrained(tmp_path)
    again = TargetNet.from_pretrained(tmp_path, allow_code=["distributed.custom_teachers"])
    for count in (1, 5):  # no batch of the run was as large
        images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        assert again.predict(images).shape == (count, len(LABELS))
        assert torch.equal(again.predict(images), target.predict(images))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["joint", "paper"])
def test_served_teachers_make_the_target_that_local_ones_make(
    run: Run, odd: list[TeacherSpec], make_pool: MakePool, name: str
) -> None:
    here = run(name, specs=odd).outcome
    with make_pool(odd) as pool:
        there = run(name, specs=odd, teachers=pool.teachers).outcome
    assert there.dual_losses.keys() == here.dual_losses.keys()
    torch.testing.assert_close(flat(there.state), flat(here.state), rtol=0, atol=1e-4)
