"""Whole runs of every recipe, by teachers that differ in task, labels, depth and format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfka_dist.models.target import TargetNet
from dfka_dist.training import joint
from dfka_dist.training.aside import Aside
from dfka_dist.training.outcome import SAMPLES, Network
from distributed.recipes import DEPTHS, LABELS, PHASES, Ran, Run

BUDGET = 1500
"""Parameters, between the smallest and the largest target that there may be."""
pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module", params=PHASES)
def ran(request: pytest.FixtureRequest, run: Run) -> Ran:
    return run(request.param)


def test_every_number_of_every_network_is_finite(ran: Ran) -> None:
    assert all(flat(network.state).isfinite().all() for network in ran.outcome.networks)


def test_every_loss_is_finite(ran: Ran) -> None:
    values = [value for record in ran.records for value in record["losses"].values()]
    assert values and torch.tensor(values).isfinite().all()


def test_a_recipe_has_its_phases(ran: Ran) -> None:
    assert [phase["name"] for phase in ran.outcome.phases] == PHASES[ran.name]


def test_the_result_predicts_every_wanted_label(ran: Ran) -> None:
    target = TargetNet(ran.outcome.design)
    target.load_state_dict(ran.outcome.state)
    assert target.eval().predict(torch.rand(2, 3, 16, 16)).shape == (2, len(LABELS))
    assert target.labels == LABELS


def test_the_result_branches_where_it_was_told_or_where_its_dual_loss_is_least(ran: Ran) -> None:
    losses = ran.outcome.dual_losses
    best = {name: min(DEPTHS, key=lambda d: losses[name][d]) for name in losses}
    wanted = {"noise": {"one": 3, "two": 2}, "folder": {"one": 3, "two": 3}}
    assert branch_points(ran.outcome.network) == wanted.get(ran.name, best)


def test_dual_losses_are_measured_where_there_are_filters(ran: Ran) -> None:
    measured = {name: tuple(own) for name, own in ran.outcome.dual_losses.items()}
    assert measured == ({} if ran.name == "noise" else {"one": DEPTHS, "two": DEPTHS})


def test_every_network_is_judged_on_the_probe_set(ran: Ran) -> None:
    judged = [network.data_free for network in ran.outcome.networks]
    assert all(0 <= each["agreement"] <= 1 for each in judged)
    assert all(set(each["coverage"]) == set(LABELS) for each in judged)


def test_the_result_is_the_candidate_that_agrees_most(ran: Ran) -> None:
    best = max(each.data_free["agreement"] for each in ran.outcome.candidates)
    assert ran.outcome.network in ran.outcome.candidates
    assert ran.outcome.data_free["agreement"] == best


def test_there_is_a_network_for_every_depth_that_the_result_does_not_have(ran: Ran) -> None:
    designs = [branch_points(each) for each in (ran.outcome.candidates[-1], *ran.outcome.depths)]
    even = [dict.fromkeys(("one", "two"), depth) for depth in DEPTHS]
    assert len({str(design) for design in designs}) == len(designs)
    assert (ran.name == "noise") or all(design in designs for design in even)


def test_there_are_samples_where_something_was_synthesized(ran: Ran) -> None:
    samples = ran.outcome.samples
    shape = None if samples is None else tuple(samples.shape)
    synthesized = ran.name in ("joint", "paper")
    assert shape == ((len(LABELS) * SAMPLES, 3, 16, 16) if synthesized else None)


def test_the_same_seed_gives_the_same_bits(ran: Ran, run: Run) -> None:
    again = run(ran.name).outcome
    assert len(again.networks) == len(ran.outcome.networks)
    for one, other in zip(ran.outcome.networks, again.networks, strict=True):
        assert all(other.state[key].equal(value) for key, value in one.state.items())


def test_zero_stages_agree(ran: Ran, run: Run) -> None:
    other = run(ran.name, zero_stage=3).outcome
    for one, two in zip(ran.outcome.networks, other.networks, strict=True):
        torch.testing.assert_close(flat(two.state), flat(one.state), rtol=0, atol=1e-4)


def test_without_a_student_nobody_disagrees(run: Run) -> None:
    """The default weights are those of the recipe joint."""
    records = run("paper").records
    assert not any("adversarial" in record["losses"] for record in records)


def test_candidates_are_the_moments_that_were_asked_for_and_the_end(run: Run) -> None:
    found = run("noise", candidates=3).outcome.candidates
    assert [each.name for each in found] == ["distill 2", "distill 4", "distill 6", "fine-tuned"]


def test_candidates_are_comparable_where_branches_were_chosen_later(run: Run) -> None:
    found = run("joint").outcome.candidates
    assert [each.name for each in found] == ["regrouped", "fine-tuned"]
    assert branch_points(found[0]) == branch_points(found[1])


def test_recipe_paper_has_trained_a_branch_at_every_depth(run: Run) -> None:
    outcome = run("paper", target={"branch": "last"}, branch_steps=0).outcome
    depths = [
        branch_points(each)["one"]
        for each in outcome.depths
        if len({*branch_points(each).values()}) == 1
    ]
    assert {1, 2} <= set(depths)
    assert branch_points(outcome.network) == {"one": 3, "two": 3}


def test_a_teacher_of_weight_zero_has_its_branch_all_the_same(run: Run) -> None:
    outcome = run("joint", losses={"distill": {"two": 0.0}}).outcome
    assert set(outcome.dual_losses["two"]) == set(DEPTHS)


def test_a_budget_is_kept(run: Run) -> None:
    outcome = run("joint", target={"max_parameters": BUDGET}).outcome
    others = [TargetNet(each.design).parameter_count() for each in outcome.depths]
    assert TargetNet(outcome.design).parameter_count() <= BUDGET < max(others)


def branch_points(network: Network) -> dict[str, int]:
    return {branch.teacher.name: branch.depth for branch in network.design.branches}


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in state.values()])


@pytest.mark.parametrize("zero_stage", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_both_generators_at_once_make_the_bits_that_they_make_in_turns(
    run: Run, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    found = []
    for helped in (True, False):
        own = Aside(helped=helped)
        monkeypatch.setattr(joint.Aside, "fitting", lambda _, own=own: own)
        found.append(run("joint", zero_stage=zero_stage).outcome)
    for one, other in zip(found[0].networks, found[1].networks, strict=True):
        assert all(other.state[key].equal(value) for key, value in one.state.items())
    assert torch.equal(found[0].samples, found[1].samples)
