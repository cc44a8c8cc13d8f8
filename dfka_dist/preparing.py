"""Everything that a user can get wrong is found here, before anything is started or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dfka_dist.archive import Archive, refuse_another_run, refuse_existing, refuse_unwritable
from dfka_dist.config import RunConfig
from dfka_dist.data import open_unlabelled
from dfka_dist.errors import InputError
from dfka_dist.folders import sha256
from dfka_dist.models.sources import Weights, initial_weights, read_all_weights
from dfka_dist.models.target import Architecture, DualGenerator, TargetNet
from dfka_dist.scoring import ALONE, Data, load_data
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.teachers.placement import PlacementPlan, plan
from dfka_dist.teachers.pool import TeacherPool
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.silent import SilentTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.branching import Branching
from dfka_dist.training.identity import first_difference
from dfka_dist.training.memory import image_bytes

_SAME = "a target of the same teachers, labels, backbone and branches"


@dataclass(frozen=True)
class Prepared:
    """What was read and found right."""

    config: RunConfig
    """Without the teachers that know nothing of what is wanted."""
    weights: dict[str, Weights]
    teachers: dict[str, TeacherDescription]
    data: Data
    start: dict[str, Tensor] | None
    design: Architecture
    read: dict[str, dict[str, Any]]
    """What tells the files apart that `images` and the `start` are read from."""

    @property
    def served(self) -> RunConfig:
        """The run as far as teachers are served."""
        nobody: dict[str, Any] = {"teachers": []} if self.config.is_teacherless else {}
        return self.config.model_copy(update=nobody)

    def replaced(self, config: RunConfig) -> Prepared:
        """The same with another configuration, which reads the same files."""
        return replace(self, config=config)

    def refuse_unbuildable(self, config: RunConfig, key: str) -> None:
        """Make sure that the same teachers and images make a target of another configuration.

        Raises:
            InputError: at `key`, they do not.
        """
        try:
            _design(config, self.teachers)
            _images(config, self.weights)
        except InputError as error:
            raise InputError(key, f"{error.key} {error.what}", error.remedy) from None

    def plan(self, nodes: Sequence[NodeResources]) -> PlacementPlan:
        """Where everything would go on these nodes."""
        return plan(self.served, nodes, self.teachers)


def prepared(config: RunConfig, *, resumes: bool = False) -> Prepared:
    """Read and check everything that a run names.

    Args:
        config: without the teachers that are not heard.
        resumes: the run may have begun, and written some of its archive.

    Raises:
        InputError: something is wrong.
    """
    training = config.training
    weights = (
        initial_weights(config.teachers, config.run.seed)
        if config.is_teacherless
        else read_all_weights(config.teachers)
    )
    teachers = {name: t.description for name, t in load_teachers(config.teachers, weights).items()}
    design = _design(config, teachers)
    images = _images(config, weights)
    if training.archive is not None:
        if resumes:
            refuse_another_run(training.archive, "training.archive", config.run.name)
        else:
            refuse_existing(training.archive, "training.archive")
        refuse_unwritable(training.archive, "training.archive")
    start, read = None, {"images": images, "start": dict[str, Any]()}
    if config.target.start is not None:
        start = _start(config.target.start, design)
        read["start"] = {"sha256": sha256(Path(config.target.start) / "model.safetensors")}
    return Prepared(config, weights, teachers, load_data(config), start, design, read)


def _design(config: RunConfig, teachers: Mapping[str, TeacherDescription]) -> Architecture:
    design = Branching(config, teachers).design()
    DualGenerator(design)
    return design


def _images(config: RunConfig, weights: Mapping[str, Weights]) -> dict[str, Any]:
    """How many images there are that are not synthesized, and of what shape; an archive was looked
    at more closely."""
    source = config.training.images
    kind, _, place = (source or "").partition(":")
    if kind == "archive":
        archive = Archive.open(place, "training.images")
        sums = None if config.is_teacherless else {n: w.sha256 for n, w in weights.items()}
        archive.check(config.teachers, config.labels, "training.images", sums)
        return {"count": len(archive), "groups": archive.groups, "shape": list(archive.shape)}
    return {} if source in (None, "noise") else {"count": len(open_unlabelled(str(source)))}


def _start(place: str, design: Architecture) -> dict[str, Tensor]:
    try:
        target = TargetNet.from_pretrained(
            place, [b.teacher.source.partition(":")[0] for b in design.branches]
        )
    except InputError as error:
        # What makes this run's own teachers is imported anyway; nothing else can be right here.
        remedy = _SAME if error.key == "allow_code" else error.remedy
        raise InputError("target.start", error.what, remedy) from None
    saved = target.design.model_copy(update={"dfka_dist": design.dfka_dist})
    if saved != design:
        difference = first_difference(saved.model_dump(), design.model_dump())
        by = f", by {difference.key}" if difference else ""
        what = f"{place} is another target than this run makes{by}"
        raise InputError("target.start", what, _SAME)
    return target.state_dict()


def warnings(given: RunConfig, ready: Prepared, placement: PlacementPlan) -> Iterator[str]:
    """What a user should know of a run before it begins.

    Args:
        given: with all teachers.
    """
    config, training = ready.config, ready.config.training
    heard = [teacher.name for teacher in config.teachers]
    for teacher in given.teachers:
        if teacher.name not in heard:
            what = "knows none of the labels that are wanted, and is left out"
            yield f"the teacher {teacher.name} {what}"
    if training.recipe == "paper" and config.losses.link and not config.losses.group:
        yield (
            "losses.link: the features of eq. 15 mean nothing without losses.group, which is 0; "
            "the preset paper has one"
        )
    if config.is_teacherless and config.evaluations:
        yield ALONE
    if placement.seats and not placement.is_checked:
        yield (
            "serving.gpu_gigabytes: the memory of no GPU is known, so nobody checked whether the "
            "teachers fit theirs"
        )
    image, labels = ready.design.input, sum(len(teacher.labels) for teacher in config.teachers)
    batch = training.batch_size * image_bytes(image.channels * image.size**2, labels)
    fitting = training.memory_megabytes * 2**20 // batch
    if training.recipe == "joint" and training.rehearsal_steps and fitting < training.steps:
        needed = -(-batch * training.steps // 2**20)
        yield (
            f"training.memory_megabytes: {fitting} of {training.steps} steps fit, and the "
            f"rehearsal will know no earlier images ({needed} for all)"
        )


@contextmanager
def teachers(
    ready: Prepared, placement: PlacementPlan, name: str, say: Callable[[str], None]
) -> Iterator[tuple[ServedTeachers | SilentTeachers, Callable[[], float]]]:
    """The teachers of a run, and how long they have computed."""
    config = ready.config
    if config.is_teacherless:
        say("there are no teachers: an archive says what they said")
        yield SilentTeachers(config.teachers, ready.weights), lambda: 0.0
        return
    say(f"starting {len(placement.seats)} teacher servers")
    with TeacherPool(config.teachers, ready.weights, placement, config.served, name) as pool:
        yield pool.teachers, pool.cpu_seconds
