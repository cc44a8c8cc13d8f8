"""Targets that are trained from an archive, with the teachers and without any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfka_dist.archive import Archive
from dfka_dist.config import LossWeights, RunConfig, TeacherSpec
from dfka_dist.models.sources import initial_weights
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.silent import SilentTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.distilling import _given, supplied
from dfka_dist.training.dual import Lesson
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.workshop import Workshop

pytestmark = pytest.mark.usefixtures("process_group")

SHORT: dict[str, Any] = {
    "steps": 6,
    "rehearsal_steps": 2,
    "probe_images": 64,
    "fine_tune_steps": 2,
    "batch_size": 8,
    "memory_megabytes": 1,
    "precision": "fp32",
}
Family = list[TeacherSpec]


@pytest.fixture(scope="module", params=["multi_label", "single_label"], ids=["shared", "homes"])
def family(request: pytest.FixtureRequest, make_teacher: Callable[..., TeacherSpec]) -> Family:
    """Two teachers, who share all images, or of whom each has its own."""
    return [
        make_teacher("one", "abc", task=request.param),
        make_teacher("two", "de", widths=(5, 6), size=12),
    ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archive")


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(family: Family, make_config: Callable[..., RunConfig], archive: Path) -> Make:
    """A factory of short runs: `make(family, recipe="distill")`."""

    def make(specs: Family, target: dict[str, Any] | None = None, **training: Any) -> RunConfig:
        own = {"arguments": {"widths": [4, 6, 8]}} | (target or {})
        return make_config(specs, target=own, generator={"latent": 6}, training=SHORT | training)

    return make


@pytest.fixture(scope="module")
def teachers(family: Family, load_teacher: Callable[[TeacherSpec], Teacher]) -> LocalTeachers:
    return LocalTeachers({spec.name: load_teacher(spec) for spec in family})


@pytest.fixture(scope="module")
def made(
    family: Family, make: Make, teachers: LocalTeachers, archive: Path, process_group: None
) -> Outcome:
    """A joint run that leaves an archive behind."""
    place = archive / family[0].task
    return run(make(family, archive=str(place)), teachers)


@pytest.fixture(scope="module")
def source(made: Outcome, family: Family, archive: Path) -> str:
    return f"archive:{archive / family[0].task}"


def run(config: RunConfig, teachers: Teachers, start: dict[str, Tensor] | None = None) -> Outcome:
    return Amalgamator(config, teachers, [].append, start=start).run()


def silent(specs: Family) -> tuple[Family, SilentTeachers]:
    """The teachers as an archive knows them: shapes and labels, no weights."""
    bare = [spec.model_copy(update={"weights": None}) for spec in specs]
    return bare, SilentTeachers(bare, initial_weights(bare, 0))


def test_a_run_leaves_every_image_of_its_joint_phase(source: str, family: Family) -> None:
    archive = Archive.open(source.removeprefix("archive:"), "training.images")
    assert len(archive) == SHORT["steps"] * SHORT["batch_size"]
    assert [teacher.name for teacher in archive.teachers] == [spec.name for spec in family]


def test_an_archive_has_zeros_of_teachers_that_were_not_asked_about_an_image(
    source: str, family: Family
) -> None:
    archive = Archive.open(source.removeprefix("archive:"), "training.images")
    batch = next(archive.batches(size=len(archive), seed=0))
    for number, spec in enumerate(family):
        asked = (batch.homes < 0) | (batch.homes == number)
        said = batch.logits[spec.name] != 0
        assert said[asked].any(dim=1).all() and not said[~asked].any()


def test_a_target_learns_from_an_archive(
    source: str, family: Family, make: Make, teachers: LocalTeachers
) -> None:
    outcome = run(make(family, recipe="distill", images=source), teachers)
    assert flat(outcome.state).isfinite().all()
    assert [phase["name"] for phase in outcome.phases] == ["distill", "fine_tune"]


def test_a_target_learns_from_an_archive_without_teachers(
    source: str, family: Family, make: Make
) -> None:
    bare, nobody = silent(family)
    outcome = run(make(bare, recipe="distill", images=source), nobody)
    target = TargetNet(outcome.design)
    target.load_state_dict(outcome.state)
    assert target.eval().predict(torch.rand(2, 1, 16, 16)).isfinite().all()


def test_a_target_goes_on_from_an_archive_without_teachers(
    source: str, family: Family, make: Make, made: Outcome
) -> None:
    """It begins as it was, and all of it moves, its tails too."""
    bare, nobody = silent(family)

    def moved(rate: float) -> dict[str, float]:
        rates = {"dual_rate": rate, "fine_tune_rate": rate}
        config = make(bare, target={"start": "x"}, recipe="distill", images=source, **rates)
        state = run(config, nobody, start=made.state).state
        far = {name: (state[name] - made.state[name]).abs().max().item() for name in weights}
        return {part: max(far[n] for n in far if n.startswith(part)) for part in ("trunk", "tails")}

    weights = [name for name in made.state if name.endswith((".weight", ".bias"))]
    assert max(moved(1e-9).values()) < 1e-6
    assert min(moved(1e-2).values()) > 1e-3


def test_images_from_an_archive_come_to_the_workers_device(
    source: str, family: Family, make: Make
) -> None:
    bare, nobody = silent(family)
    config = make(bare, recipe="distill", images=source)
    workshop = Workshop(config, nobody, [].append, torch.device("cpu"))
    supply = replace(supplied(workshop), device=torch.device("meta"))
    (batch,) = supply.batches("x", range(1))
    devices = {value.device.type for value in (batch.images, *batch.logits.values())}
    assert devices == {"meta"}


def test_given_images_come_to_the_workers_device(family: Family, make: Make) -> None:
    config = make(family, recipe="distill", images="noise")
    workshop = Workshop(config, silent(family)[1], [].append, torch.device("cpu"))
    supply = _given(workshop, "noise")
    assert replace(supply, device=torch.device("meta")).drawn("x", 0, range(4)).is_meta


def test_images_of_a_teacher_that_is_left_out_teach_and_prove_nothing(
    source: str, family: Family, make: Make
) -> None:
    bare, nobody = silent(family[1:])
    config = make(bare, recipe="distill", images=source)
    assert flat(run(config, nobody).state).isfinite().all()
    workshop = Workshop(config, nobody, [].append, torch.device("cpu"))
    supply = supplied(workshop)
    homes = supply.probe(64).homes
    assert (homes < 1).all() and len(homes) > 0
    (batch,) = supply.batches("x", range(1))
    foreign = batch.taken((batch.homes == 1).nonzero()[:, 0])
    lesson = Lesson(foreign, workshop.panel, LossWeights())
    said = {"two": torch.randn(len(foreign.images), 2, requires_grad=True)}
    assert len(foreign.images) or family[0].task == "multi_label"
    if len(foreign.images):
        assert lesson.report(lesson.concerned(said)).total.item() == 0


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in state.values()])
