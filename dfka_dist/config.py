"""The run as frozen, validated data: every key, its default, and what it may be."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from dfka_dist.errors import InputError

PRESETS = Path(__file__).resolve().parents[1] / "jobs" / "presets"
"""Where `preset:` names are looked up: beside the jobs."""

Label = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) is int else v), Field(min_length=1)
]


def _matching(pattern: str, remedy: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value[:60]!r} does not fit || {remedy}")
        return value

    return AfterValidator(check)


Name = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}",
        "at most 60 letters, digits, _ and -, no other first than a letter or digit",
    ),
]
Source = Annotated[
    str,
    _matching(
        r"builtin:\w+|hf:.+|[A-Za-z_][\w.]*:[A-Za-z_]\w*",
        "builtin:NAME, hf:FOLDER, hf:HUB_ID or package.module:callable",
    ),
]
DataSource = Annotated[
    str,
    _matching(
        r"digits|(parquet|idx|folder):.+", "digits, parquet:URI, idx:FOLDER or folder:FOLDER"
    ),
]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Task = Literal["single_label", "multi_label"]
Precision = Literal["fp32", "bf16"]


class Node(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, numbers not made from strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(Node):
    """Who the run is and where it happens."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    address: str | None = None
    """Ray cluster to connect to; without it the run starts a private one on this machine."""


class InputSpec(Node):
    """What a network eats: square images in [0, 1], normalised channel by channel."""

    channels: Literal[1, 3]
    size: Annotated[int, Field(ge=4, le=4096)]
    mean: Annotated[list[float], Field(min_length=1)] = [0.5]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.5]

    @model_validator(mode="after")
    def _one_number_or_one_per_channel(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{key} has {len(values)} numbers || one, or one a channel: {self.channels}"
                )
        return self


class TeacherSpec(Node):
    """One frozen classifier: where it comes from, what it knows, where it is cut."""

    name: Name
    source: Source
    weights: str | None = None
    arguments: dict[str, Any] = {}
    task: Task
    labels: Annotated[list[Label], Field(min_length=1)]
    blocks: Annotated[list[str], Field(min_length=1)]
    input: InputSpec


class TargetSpec(Node):
    """The network that is wanted."""

    labels: Literal["all"] | Annotated[list[Label], Field(min_length=1)] = "all"
    backbone: str = "convnet"
    arguments: dict[str, Any] = {}
    branch_depth: Count | None = None
    """Depth at which every teacher's branch leaves the trunk; without it B, behind the last
    block."""


class GeneratorSpec(Node):
    """The group-stack generator."""

    latent: Count = 100
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Channels inside a group, as a multiple of those it is given."""
    label_scale: Weight = 1.0
    """Length of the fixed vector added to the latent for every sampled label, in standard
    deviations."""
    labels_per_image: Count = 1
    """Sampled label sets hold 1 to this many labels, all sizes equally often."""


class LossWeights(Node):
    """Weight of every loss term; a weight of 0 costs nothing."""

    one_hot: Weight = 1.0
    activation: Weight = 0.0
    entropy: Weight = 0.0
    discrete: Weight = 0.0
    group: Weight = 0.3
    batch_norm: Weight = 10.0
    adversarial: Weight = 0.4
    diversity: Weight = 4.0
    total_variation: Weight = 0.0
    l2: Weight = 0.0
    distill: Weight = 1.0


class TrainingSpec(Node):
    """How long, how large, how exact."""

    recipe: Literal["joint"] = "joint"
    steps: Count = 800
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Synthesized images a step, over all workers together."""
    precision: Literal["auto"] | Precision = "auto"
    """Of the networks' forward and backward; auto is bf16 where the hardware has it, else fp32."""
    workers: Count = 1
    zero_stage: Literal[1, 2, 3] = 1
    sampled_labels: bool = True
    """Ask for sampled label sets; otherwise eq. 5 takes the teachers' own decisions as targets."""
    dual_steps: Annotated[int, Field(ge=1)] = 4
    """Steps of the dual generator for each step of the generator."""
    fresh_every: Count = 2
    """Every how-manyth image of the newest batch is in a dual batch."""
    remember_every: Count = 2
    """For every how-manyth column of a batch a remembered image comes with it."""
    memory_megabytes: Count = 512
    generator_rate: Rate = 2e-3
    dual_rate: Rate = 2e-3
    fine_tune_steps: Annotated[int, Field(ge=0)] = 200
    fine_tune_rate: Rate = 2e-4
    threads: Count | None = None
    """CPU threads of a worker; without it the machine's cores but one, shared by the workers."""
    worker_cpus: Annotated[float, Field(gt=0)] = 1.0
    worker_gpus: Literal[0, 1] = 0
    report_every: Count = 10
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a collective that waits ends the run."""


class ServingSpec(Node):
    """How the teachers are served."""

    replicas: Count = 1
    in_flight: Count = 4
    """Calls that one client may have outstanding with one replica."""
    cpus: Annotated[float, Field(gt=0)] = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0.0
    threads: Count = 1
    cache_megabytes: Count = 1024
    """Bound on the graphs that a server keeps between forward and pullback."""
    strategy: Literal["pack", "spread"] = "pack"
    start_timeout: Annotated[float, Field(gt=0)] = 120.0
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a dead server is started again."""
    wire: Precision = "fp32"
    """What travels between trainer and teachers; statistics are never less than fp32."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which an answer that does not come ends the run."""
    wait_for_nodes: bool = False
    """The cluster can grow: wait for nodes that are not there yet instead of refusing the plan."""


class EvaluationSpec(Node):
    """Test data, for reporting only."""

    source: DataSource
    teachers: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    labels: list[Label] | None = None
    """Names of the integer classes of the data, in their order; without it the integers
    themselves."""
    split: Literal["train", "test"] = "test"


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

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        _refuse_repeats("teachers", [teacher.name for teacher in self.teachers], "teacher name")
        self._check_teachers()
        self._check_target()
        self._check_training()
        for name, evaluation in self.evaluations.items():
            known = [teacher.name for teacher in self.teachers]
            for asked in [] if evaluation.teachers == "all" else evaluation.teachers:
                if asked not in known:
                    raise InputError(
                        f"evaluations.{name}.teachers",
                        f"no teacher is called {asked!r}",
                        f"one of {', '.join(known)}",
                    )
        return self

    def _check_target(self) -> None:
        union = list(dict.fromkeys(label for teacher in self.teachers for label in teacher.labels))
        if self.target.labels != "all":
            _refuse_repeats("target.labels", self.target.labels, "label")
            for label in self.target.labels:
                if label not in union:
                    raise InputError(
                        "target.labels",
                        f"no teacher knows {label!r}",
                        f"some of {', '.join(union)}",
                    )
        deepest = len(self.teachers[0].blocks)
        if self.target.branch_depth is not None and self.target.branch_depth > deepest:
            raise InputError(
                "target.branch_depth", f"is {self.target.branch_depth}", f"1 to {deepest}"
            )

    def _check_teachers(self) -> None:
        first = self.teachers[0]
        for index, teacher in enumerate(self.teachers):
            key = f"teachers.{index}"
            _refuse_repeats(f"{key}.labels", teacher.labels, "label")
            _refuse_repeats(f"{key}.blocks", teacher.blocks, "block")
            if len(teacher.blocks) != len(first.blocks):
                raise InputError(
                    f"{key}.blocks",
                    f"are {len(teacher.blocks)} where {first.name} has {len(first.blocks)}",
                    "as many blocks for every teacher",
                )
            if "single_label" in (teacher.task, first.task) and teacher.labels != first.labels:
                raise InputError(
                    f"{key}.labels",
                    f"differ from those of {first.name}, and a single-label teacher is among them",
                    "multi_label teachers, or the same labels for all",
                )
            if teacher.task == "single_label" and self.generator.labels_per_image > 1:
                raise InputError(
                    "generator.labels_per_image",
                    f"is more than one for the single-label teacher {teacher.name}",
                    "1",
                )

    def _check_training(self) -> None:
        training = self.training
        # Neighbours are compared for their diversity, and every worker has as many of each kind.
        unit = math.lcm(2, training.fresh_every, training.remember_every) * training.workers
        if training.batch_size % unit:
            raise InputError(
                "training.batch_size",
                f"{training.batch_size} does not divide into equal parts",
                f"a multiple of {unit}, for {training.workers} workers",
            )

    @property
    def labels(self) -> list[str]:
        """The customised label set Y_cst, in the user's order."""
        if self.target.labels != "all":
            return list(self.target.labels)
        return list(dict.fromkeys(label for teacher in self.teachers for label in teacher.labels))


def _refuse_repeats(key: str, values: list[str], what: str) -> None:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise InputError(key, f"the {what} {repeated!r} stands twice", "each once")
