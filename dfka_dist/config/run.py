"""One whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from dfka_dist.config.checks import batch_unit, refuse_misfits
from dfka_dist.config.networks import GeneratorSpec, TargetSpec, TeacherSpec
from dfka_dist.config.search import SearchSpec
from dfka_dist.config.serving import EvaluationSpec, RunSection, ServingSpec
from dfka_dist.config.training import LossWeights, TrainingSpec
from dfka_dist.config.values import Name, Node


class RunConfig(Node):
    """One whole run."""

    run: RunSection
    teachers: Annotated[list[TeacherSpec], Field(min_length=1)]
    target: TargetSpec = TargetSpec()
    generator: GeneratorSpec = GeneratorSpec()
    losses: LossWeights = LossWeights()
    training: TrainingSpec = TrainingSpec()
    serving: ServingSpec = ServingSpec()
    evaluations: dict[Name, EvaluationSpec] = {}
    search: SearchSpec | None = None
    """Of `jobs/tune.py`; a run alone passes it over."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if "batch_size" not in self.training.model_fields_set:
            unit = batch_unit(self)
            size = max(unit, self.training.batch_size // unit * unit)
            divided = self.training.model_copy(update={"batch_size": size})
            object.__setattr__(self, "training", divided)  # frozen for everybody else
        refuse_misfits(self)
        return self

    @property
    def heard(self) -> list[TeacherSpec]:
        """The teachers that know at least one of the customised labels."""
        wanted = set(self.labels)
        return [teacher for teacher in self.teachers if wanted & set(teacher.labels)]

    @property
    def has_homes(self) -> bool:
        """Whether every image belongs to one teacher: single-label teachers of different labels
        can never both be right about the same image."""
        heard = self.heard
        alike = all(set(teacher.labels) == set(heard[0].labels) for teacher in heard)
        return not alike and any(teacher.task == "single_label" for teacher in heard)

    @property
    def served(self) -> ServingSpec:
        """How the teachers are served: a question may be out in as many calls as
        `training.micro_batch` makes of a batch, which hold no more than one would."""
        training = self.training
        share = training.batch_size // min(training.worker_range)
        parts = -(-share // (training.micro_batch or share))
        return self.serving.model_copy(update={"in_flight": self.serving.in_flight * parts})

    @property
    def is_teacherless(self) -> bool:
        """Whether only an archive tells what the teachers said: none of them is there."""
        return self.lacks_weights and (self.training.images or "").startswith("archive:")

    @property
    def lacks_weights(self) -> bool:
        """Whether no teacher that is heard has weights."""
        return all(teacher.weights is None for teacher in self.heard)

    def without_unheard(self) -> Self:
        """The run without the teachers that know no customised label."""
        names = [teacher.name for teacher in self.heard]
        evaluations = {
            key: spec if spec.teachers == "all" else spec.model_copy(update={"teachers": kept})
            for key, spec in self.evaluations.items()
            if (kept := [name for name in names if spec.teachers == "all" or name in spec.teachers])
        }
        branch, distill = _only(names, self.target.branch), _only(names, self.losses.distill)
        return self.model_copy(
            update={
                "teachers": self.heard,
                "evaluations": evaluations,
                "target": self.target.model_copy(update={"branch": branch}),
                "losses": self.losses.model_copy(update={"distill": distill}),
            }
        )

    def without_archive(self) -> Self:
        """The run without the images that it would keep."""
        training = self.training.model_copy(update={"archive": None})
        return self.model_copy(update={"training": training})

    @property
    def labels(self) -> list[str]:
        """The customised label set Y_cst, in the user's order."""
        if self.target.labels != "all":
            return list(self.target.labels)
        return list(dict.fromkeys(label for teacher in self.teachers for label in teacher.labels))

    @property
    def asked_labels(self) -> list[str]:
        """What images may be asked for: the customised labels, and then whatever else the teachers
        know that are heard, for an image of it is one of none of those."""
        known = (label for teacher in self.heard for label in teacher.labels)
        return list(dict.fromkeys([*self.labels, *known]))


def _only(names: Sequence[str], given: object) -> object:
    """What is given by teacher, for some of them; anything else stays as it is."""
    return {n: v for n, v in given.items() if n in names} if isinstance(given, dict) else given
