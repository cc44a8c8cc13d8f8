"""Whether the parts of a run fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dfka_dist.errors import InputError, some

if TYPE_CHECKING:
    from dfka_dist.config.run import RunConfig


def refuse_misfits(config: RunConfig) -> None:
    """Look at everything that no part can know alone.

    Raises:
        InputError: the first thing that is wrong.
    """
    _refuse_repeats("teachers", [teacher.name for teacher in config.teachers], "teacher name")
    _check_teachers(config)
    _check_weights(config)
    _check_target(config)
    _check_training(config)
    for name, evaluation in config.evaluations.items():
        if evaluation.teachers != "all":
            _check_names(config, f"evaluations.{name}.teachers", evaluation.teachers)


def _check_target(config: RunConfig) -> None:
    union = list(dict.fromkeys(label for teacher in config.teachers for label in teacher.labels))
    if config.target.labels != "all":
        _refuse_repeats("target.labels", config.target.labels, "label")
        for label in config.target.labels:
            if label not in union:
                raise InputError(
                    "target.labels",
                    f"no teacher knows {label!r}",
                    f"some of {some(union, label)}",
                )
    if isinstance(config.target.branch, dict):
        _check_names(config, "target.branch", config.target.branch)
    if config.target.max_parameters is not None and config.target.branch not in ("last", "best"):
        raise InputError(
            "target.branch",
            "says where branches leave, and target.max_parameters lets them be chosen",
            "one of the two",
        )
    chosen = config.target.branch == "best" or config.target.max_parameters is not None
    if chosen and not config.training.branch_steps and config.training.recipe != "paper":
        raise InputError(
            "training.branch_steps",
            "is 0, and depths can only be compared where filters were trained",
            "100 or more for target.branch best and for target.max_parameters",
        )


def _check_teachers(config: RunConfig) -> None:
    for index, teacher in enumerate(config.teachers):
        key = f"teachers.{index}"
        _refuse_repeats(f"{key}.labels", teacher.labels, "label")
        _refuse_repeats(f"{key}.blocks", teacher.blocks, "block")
    single = [teacher.name for teacher in config.heard if teacher.task == "single_label"]
    if single and config.generator.labels_per_image > 1:
        raise InputError(
            "generator.labels_per_image",
            f"is more than one for the single-label teacher {single[0]}",
            "1",
        )
    if isinstance(config.losses.distill, dict):
        _check_names(config, "losses.distill", config.losses.distill)


def _check_weights(config: RunConfig) -> None:
    without = [teacher for teacher in config.heard if teacher.weights is None]
    if without and not config.lacks_weights:
        raise InputError(
            f"teachers.{config.teachers.index(without[0])}.weights",
            "is null, but other teachers have weights",
            "either all teachers or none without weights; none with training.images archive:PLACE",
        )


def _check_training(config: RunConfig) -> None:
    training = config.training
    _check_batch(config)
    if training.worker_range[-1] > 1 and training.timeout <= config.serving.timeout:
        raise InputError(
            "training.timeout",
            f"{training.timeout:g} s is no more than serving.timeout, {config.serving.timeout:g} s",
            "more, or a shorter serving.timeout",
        )
    if (training.recipe == "distill") != (training.images is not None):
        raise InputError(
            "training.images",
            f"is {training.images or 'missing'} with the recipe {training.recipe}",
            "an image source with the recipe distill, and only there",
        )
    if config.target.start is not None and training.recipe != "distill":
        raise InputError(
            "target.start",
            f"is given to the recipe {training.recipe}",
            "training.recipe distill",
        )
    if config.target.start is not None and training.branch_steps:
        raise InputError(
            "training.branch_steps", "is given for a target that is there already", "0"
        )
    if config.is_teacherless and training.branch_steps:
        raise InputError(
            "training.branch_steps",
            "needs teachers that can be asked, and none has weights",
            "0, or the teachers' weights",
        )
    if training.archive is not None and training.recipe == "distill":
        raise InputError(
            "training.archive", "nothing is synthesized by the recipe distill", "leave it out"
        )


def batch_unit(config: RunConfig) -> int:
    """What the batch size must be a multiple of.

    Neighbours are compared for their diversity; every worker has as many of each kind, and as many
    for each home teacher.
    """
    training = config.training
    own = math.lcm(2 * _homes(config), training.fresh_every, training.remember_every)
    return own * math.lcm(*training.worker_range)


def _homes(config: RunConfig) -> int:
    return len(config.heard) if config.has_homes else 1


def _check_batch(config: RunConfig) -> None:
    training, homes, unit = config.training, _homes(config), batch_unit(config)
    if training.batch_size % unit:
        counts = " or ".join(map(str, training.worker_range))
        shared = f" and {homes} teachers with images of their own" if homes > 1 else ""
        raise InputError(
            "training.batch_size",
            f"{training.batch_size} does not divide into equal parts",
            f"a multiple of {unit}, for {counts} workers{shared}",
        )
    for key in ("fresh_every", "remember_every"):
        if homes > 1 and getattr(training, key) > 2:
            raise InputError(
                f"training.{key}",
                f"{getattr(training, key)} would leave out whole home teachers",
                "1 or 2 with single-label teachers of different labels",
            )


def _check_names(config: RunConfig, key: str, given: Iterable[str]) -> None:
    known = [teacher.name for teacher in config.teachers]
    for name in given:
        if name not in known:
            raise InputError(key, f"no teacher is called {name!r}", f"one of {some(known, name)}")


def _refuse_repeats(key: str, values: list[str], what: str) -> None:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise InputError(key, f"the {what} {repeated!r} stands twice", "each once")
