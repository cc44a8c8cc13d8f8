"""A whole run on one worker, without any launcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist.config import LossWeights, RunConfig, TeacherSpec
from dfka_dist.errors import Interrupted, NonFiniteLoss
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import SAMPLES, Outcome
from dfka_dist.training.panel import Panel
from dfka_dist.training.probe import Contest, Heard, ProbeSet, unpacked
from distributed.game import EVERY_TERM, LABELS

pytestmark = pytest.mark.usefixtures("process_group")

STEPS, REHEARSAL_STEPS, FINE_TUNE_STEPS = 6, 4, 3
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def tiny(
    make_config: Callable[..., RunConfig], specs: dict[str, TeacherSpec]
) -> Callable[..., RunConfig]:
    """A factory of short runs with every term: `tiny(teachers=..., seed=1, zero_stage=3)`."""

    def make(
        teachers: list[TeacherSpec] | None = None, seed: int = 0, **training: Any
    ) -> RunConfig:
        short = {
            "steps": STEPS,
            "rehearsal_steps": REHEARSAL_STEPS,
            "fine_tune_steps": FINE_TUNE_STEPS,
            "batch_size": 8,
            "probe_images": 64,
        }
        return make_config(
            teachers or [specs["first"], specs["second"]],
            run={"seed": seed},
            target={"labels": LABELS, "arguments": {"widths": [4, 6, 8]}},
            generator={"latent": 6},
            losses=EVERY_TERM.model_dump(),
            training=short | {"report_every": 2, "memory_megabytes": 1} | training,
        )

    return make


@pytest.fixture(scope="module")
def load(load_teacher: Callable[[TeacherSpec], Teacher]) -> Callable[[RunConfig], LocalTeachers]:
    return lambda config: LocalTeachers({s.name: load_teacher(s) for s in config.teachers})


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], load: Callable[[RunConfig], LocalTeachers]) -> Run:
    """Run what `tiny` makes."""

    def run(
        *teachers: TeacherSpec, records: list[Record] | None = None, **settings: Any
    ) -> Outcome:
        config = tiny(list(teachers), **settings)
        keep = [].append if records is None else records.append
        return Amalgamator(config, load(config), keep).run()

    return run


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return []


@pytest.fixture(scope="module")
def outcome(run: Run, records: list[Record], process_group: None) -> Outcome:
    return run(records=records)


def test_the_same_seed_gives_the_same_network_bit_for_bit(run: Run, outcome: Outcome) -> None:
    again = run().state
    assert all(again[name].equal(value) for name, value in outcome.state.items())


def test_another_seed_gives_another_network(run: Run, outcome: Outcome) -> None:
    other = run(seed=1).state
    assert not all(other[name].equal(value) for name, value in outcome.state.items())


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_every_zero_stage_and_precision_ends_with_a_finite_network(
    run: Run, zero_stage: int, precision: str
) -> None:
    state = run(zero_stage=zero_stage, precision=precision).state
    assert flat(state).isfinite().all()


def test_a_run_without_sampled_labels_ends_with_a_finite_network(run: Run) -> None:
    assert flat(run(sampled_labels=False).state).isfinite().all()


def test_a_run_without_fine_tuning_ends_with_a_finite_network(run: Run) -> None:
    assert flat(run(fine_tune_steps=0).state).isfinite().all()


def test_the_outcome_makes_the_target_that_was_wanted(outcome: Outcome) -> None:
    target = TargetNet(outcome.design)
    target.load_state_dict(outcome.state)
    assert target.eval().predict(torch.rand(3, 3, 16, 16)).shape == (3, len(LABELS))


def test_there_are_samples_of_every_label(outcome: Outcome) -> None:
    assert outcome.samples.shape == (len(LABELS) * SAMPLES, 3, 16, 16)


def test_the_outcome_tells_how_long_each_phase_was(outcome: Outcome) -> None:
    steps = [(phase["name"], phase["steps"]) for phase in outcome.phases]
    wanted = {"joint": STEPS, "rehearsal": REHEARSAL_STEPS, "fine_tune": FINE_TUNE_STEPS}
    assert steps == list(wanted.items())


def test_records_come_every_so_many_steps_and_at_the_end_of_a_phase(
    records: list[Record], outcome: Outcome
) -> None:
    told = [(record["phase"], record["step"]) for record in records]
    ends = {"joint": [2, 4, 6], "rehearsal": [2, 4], "fine_tune": [2, 3]}
    assert told == [(phase, step) for phase, steps in ends.items() for step in steps]


def test_records_hold_every_term(records: list[Record], outcome: Outcome) -> None:
    joint = [record["losses"] for record in records if record["phase"] == "joint"]
    assert [set(losses) for losses in joint] == [set(LossWeights.model_fields) - {"link"}] * 3


def test_a_run_leaves_the_teachers_as_they_were(
    tiny: Callable[..., RunConfig], load_teacher: Callable[[TeacherSpec], Teacher]
) -> None:
    config = tiny()
    teachers = {spec.name: load_teacher(spec) for spec in config.teachers}
    before = [copied(teacher) for teacher in teachers.values()]
    Amalgamator(config, LocalTeachers(teachers), [].append).run()
    after = [copied(teacher) for teacher in teachers.values()]
    assert all(old[k].equal(new[k]) for old, new in zip(before, after, strict=True) for k in old)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_name(
    run: Run, make_teacher: Callable[..., TeacherSpec]
) -> None:
    spec = make_teacher("constant", "abc")
    assert spec.weights is not None
    state = load_file(spec.weights)
    # In training this layer has seen one value only: any other is infinitely far away.
    state["block1.1.running_var"].zero_()
    save_file(state, spec.weights)
    with pytest.raises(NonFiniteLoss, match=r"^the loss is not finite: batch_norm$"):
        run(spec)


def test_weights_that_make_the_loss_overflow_end_the_run(
    tiny: Callable[..., RunConfig], load: Callable[[RunConfig], LocalTeachers]
) -> None:
    config = tiny().model_copy(update={"losses": LossWeights(one_hot=3e38, batch_norm=3e38)})
    with pytest.raises(NonFiniteLoss, match=r"^the loss is not finite: the weighted sum$"):
        Amalgamator(config, load(config), [].append).run()


def copied(teacher: Teacher) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in teacher.chain.state_dict().items()}


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in state.values()])


# in a contest


@pytest.fixture(scope="module")
def enter(tiny: Callable[..., RunConfig], load: Callable[[RunConfig], LocalTeachers]) -> Run:
    """Run what `tiny` makes in a contest."""

    def enter(contest: Contest, records: list[Record]) -> Outcome:
        config = tiny(candidates=2)
        return Amalgamator(config, load(config), records.append, contest=contest).run()

    return enter


@pytest.fixture(scope="module")
def pilot(enter: Run, process_group: None) -> Outcome:
    return enter(Contest(), [])


@pytest.fixture(scope="module")
def common(
    tiny: Callable[..., RunConfig], load: Callable[[RunConfig], LocalTeachers], pilot: Outcome
) -> Heard:
    """The probe set that a pilot's images make."""
    config = tiny()
    made = ProbeSet(Panel(config, load(config), range(8), "fp32"))
    assert pilot.share is not None
    images, homes = pilot.share
    made.add(unpacked(images), homes)
    return made.heard()


def test_a_run_in_a_contest_hands_out_some_of_its_images(pilot: Outcome, outcome: Outcome) -> None:
    assert pilot.share is not None and outcome.share is None
    images, homes = pilot.share
    assert images.shape == (16, 3, 16, 16) and homes.tolist() == [-1] * 16


def test_a_run_in_a_contest_is_judged_at_its_moments_and_learns_the_same(
    enter: Run, pilot: Outcome, common: Heard
) -> None:
    records: list[Record] = []
    outcome = enter(Contest(common), records)
    judged = [(r["phase"], r["step"], r["agreement"]) for r in records if "agreement" in r]
    agreements = [candidate.data_free["agreement"] for candidate in outcome.candidates[:-1]]
    assert [where for *where, _ in judged] == [
        ["joint", 3],
        ["joint", 6],
        ["rehearsal", 2],
        ["rehearsal", 4],
    ]
    assert [agreement for *_, agreement in judged] == pytest.approx(agreements, abs=1e-6)
    networks = [{c.name: flat(c.state) for c in each.candidates} for each in (pilot, outcome)]
    assert networks[0]["rehearsal 4"].equal(networks[1]["rehearsal 4"])


def test_a_run_without_checkpoints_stops_when_it_is_told(
    tiny: Callable[..., RunConfig], load: Callable[[RunConfig], LocalTeachers]
) -> None:
    config = tiny()
    made = Amalgamator(config, load(config), lambda record: None, stopping=lambda: True)
    with pytest.raises(Interrupted, match=r"stopped at step \d+; nothing is kept"):
        made.run()
