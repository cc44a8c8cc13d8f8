"""The run as frozen, validated data: every key, its default, and what it may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
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
OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "amp",
    "torch_autocast",
    "zero_optimization.stage",
    "zero_allow_untested_optimizer",
)
"""What a run itself says of DeepSpeed's configuration, by other keys or by what it does."""


def _not_ours(given: dict[str, Any]) -> dict[str, Any]:
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError("zero_optimization is no mapping || its own keys below it")
    for key in (*given, *(f"zero_optimization.{name}" for name in zero)):
        if key in OURS:
            raise ValueError(
                f"{key} is not to be set here || batch_size, precision, zero_stage and the rates "
                "under training"
            )
    return given


ImageSource = Annotated[
    str,
    _matching(
        r"noise|digits|(archive|parquet|idx|folder):.+",
        "noise, digits, archive:URI, parquet:URI, idx:FOLDER or folder:FOLDER",
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
Count = Annotated[int, Field(ge=1, le=2**31)]
MaybeNone = Annotated[int, Field(ge=0, le=2**31)]
Few = Annotated[int, Field(ge=1, le=65_536)]
"""Of what takes place or a process each."""
Cpus = Annotated[float, Field(gt=0, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
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


def _grey_or_colour(channels: Any) -> Any:
    if type(channels) is int and channels not in (1, 3):
        rules = "1, which is repeated where 3 are wanted, or 3, of which the mean is taken for 1"
        raise ValueError(f"there is no rule for images of {channels} channels || {rules}")
    return channels


class InputSpec(Node):
    """What a network eats: square images in [0, 1], normalised channel by channel."""

    channels: Annotated[Literal[1, 3], BeforeValidator(_grey_or_colour)]
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
    branch: Literal["last", "best"] | Count | dict[Name, Count] = "last"
    """Depth at which a teacher's branch leaves the trunk: behind the last block, where its dual
    loss is least, or as given, for all or by teacher."""
    start: str | None = None
    """A saved target to go on with: its folder; recipe distill."""
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    """What the target may hold; branches are then the best that fit."""


class GeneratorSpec(Node):
    """The group-stack generator."""

    latent: Few = 100
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
    group: Weight = 0.0
    """Of eq. 11; the recipe paper is without its features' meaning where this is 0."""
    batch_norm: Weight = 10.0
    adversarial: Weight = 0.4
    """Of a student that learns beside the generator; recipe joint."""
    diversity: Weight = 4.0
    total_variation: Weight = 0.0
    l2: Weight = 0.0
    distill: Weight | dict[Name, Weight] = 1.0
    """Of eq. 13: one weight, or lambda_m of eq. 14 by teacher, 1 for those that are left out."""
    logits: Weight = 1.0
    link: Weight = 1.0
    """lambda_2 of eq. 16, beside lambda_1 = 1; recipe paper."""

    def lambda_of(self, teacher: str) -> float:
        """lambda_m of eq. 14: how much a teacher counts beside the others."""
        return self.distill.get(teacher, 1.0) if isinstance(self.distill, dict) else 1.0

    def of(self, term: str) -> float:
        """The weight of a whole term."""
        weight = getattr(self, term)
        return 1.0 if isinstance(weight, dict) else float(weight)


class TrainingSpec(Node):
    """How long, how large, how exact."""

    recipe: Literal["joint", "paper", "distill"] = "joint"
    """joint: both generators in turns; paper: one after the other, block by block; distill: no
    generator, the target learns from `images`."""
    steps: Count = 400
    """Of the recipe's first phase: joint, synthesis, or distill."""
    rehearsal_steps: MaybeNone = 3000
    """Of the dual generator alone, on remembered images, behind the recipe joint's first phase."""
    block_steps: Count = 200
    """Of every block of the dual generator; recipe paper."""
    images: ImageSource | None = None
    """What the recipe distill learns from; never labels, only what the teachers say of images."""
    archive: str | None = None
    """Where every synthesized image is kept with the teachers' answers: a folder or pyarrow.fs
    URI."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Synthesized images a step, over all workers together."""
    micro_batch: Count | None = None
    """Most images that a teacher is asked about at once; without it all of a worker's. What a
    server keeps of them is bounded by `serving.cache_megabytes`, what it let go is computed again,
    and the gradient is that of the whole batch."""
    precision: Literal["auto"] | Precision = "auto"
    """Of the networks' forward and backward; auto is bf16 where the hardware has it, else fp32."""
    workers: Few = 1
    zero_stage: Literal[1, 2, 3] = 1
    deepspeed: Annotated[dict[str, Any], AfterValidator(_not_ours)] = {}
    """Merged into what DeepSpeed is told of every engine: gradient_clipping, what offloads or
    overlaps under zero_optimization, and so on."""
    sampled_labels: bool = True
    """Ask for sampled label sets; otherwise eq. 5 takes the teachers' own decisions as targets."""
    dual_steps: Annotated[int, Field(ge=1)] = 4
    """Steps of the dual generator for each step of the generator."""
    fresh_every: Count = 2
    """Every how-manyth image of the newest batch is in a dual batch."""
    remember_every: Count = 2
    """For every how-manyth column of a batch a remembered image comes with it."""
    memory_megabytes: Annotated[int, Field(ge=1, le=2**24)] = 512
    """Of all workers together; the oldest images make room, so that a rehearsal on images of the
    whole way needs room for the whole way."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Most that synthesized images are shifted (in halves of the picture), turned (in radians) and
    scaled on their way to the teachers, while the generator learns."""
    move: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Most that remembered images are shifted (in halves of the picture), turned (in radians) and
    scaled before the teachers are asked again."""
    mix: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of the remembered images that are mixed with another before that."""
    generator_rate: Rate = 2e-3
    dual_rate: Rate = 2e-3
    """Of the dual generator beside the generator, block by block, or from given images; of filters
    at other depths."""
    rehearsal_rate: Rate = 5e-3
    """Of the dual generator in the rehearsal, and of targets at other depths, when they begin; it
    falls to 0."""
    fine_tune_steps: MaybeNone = 200
    fine_tune_rate: Rate = 2e-4
    branch_steps: MaybeNone = 0
    """For the filters at all depths short of B, and as many for trunk and filters of a target at
    each of them, at the rate of the rehearsal; 0: no such targets. The recipe paper has trained
    every depth already, and needs none."""
    candidates: Count = 4
    """Moments of the first phase, and of the rehearsal, whose dual generators are compared without
    data; the best is kept."""
    probe_images: Annotated[int, Field(ge=4)] = 4096
    """On which they are compared: of generators at four moments in equal parts, and all of them
    again mixed and moved. Kept in 32 bits; fewer make do with less memory for large images."""
    threads: Few | None = None
    """CPU threads of a worker; without it the machine's cores but one, shared by the workers."""
    worker_cpus: Cpus = 1.0
    worker_gpus: Literal[0, 1] = 0
    report_every: Count = 10
    timeout: Seconds = 600.0
    """Seconds after which a collective that waits ends the run."""


class ServingSpec(Node):
    """How the teachers are served."""

    replicas: Few = 1
    in_flight: Count = 4
    """Calls that one client may have outstanding with one replica."""
    cpus: Cpus = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0.0
    shards: Few | None = None
    """Servers of one replica, each with some of the teacher's blocks; without it as few as the
    memory of their part of a GPU allows, one where that is not known."""
    gpu_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """Memory of one GPU, in GiB; without it what the nodes tell."""
    threads: Few = 1
    cache_megabytes: Count = 1024
    """Bound on the graphs that a server keeps between forward and pullback."""
    strategy: Literal["pack", "spread"] = "pack"
    start_timeout: Seconds = 120.0
    restarts: Annotated[int, Field(ge=0, le=65_536)] = 3
    """How often a dead server is started again."""
    wire: Precision = "fp32"
    """What travels between trainer and teachers; statistics are never less than fp32."""
    timeout: Seconds = 600.0
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
            if evaluation.teachers != "all":
                self._check_names(f"evaluations.{name}.teachers", evaluation.teachers)
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
        if isinstance(self.target.branch, dict):
            self._check_names("target.branch", self.target.branch)
        chosen = self.target.branch == "best" or self.target.max_parameters is not None
        if chosen and not self.training.branch_steps and self.training.recipe != "paper":
            raise InputError(
                "training.branch_steps",
                "is 0, and depths can only be compared where filters were trained",
                "100 or more for target.branch best and for target.max_parameters",
            )

    def _check_teachers(self) -> None:
        for index, teacher in enumerate(self.teachers):
            key = f"teachers.{index}"
            _refuse_repeats(f"{key}.labels", teacher.labels, "label")
            _refuse_repeats(f"{key}.blocks", teacher.blocks, "block")
            if teacher.task == "single_label" and self.generator.labels_per_image > 1:
                raise InputError(
                    "generator.labels_per_image",
                    f"is more than one for the single-label teacher {teacher.name}",
                    "1",
                )
        if isinstance(self.losses.distill, dict):
            self._check_names("losses.distill", self.losses.distill)

    def _check_training(self) -> None:
        training = self.training
        self._check_batch()
        if (training.recipe == "distill") != (training.images is not None):
            raise InputError(
                "training.images",
                f"is {training.images or 'missing'} with the recipe {training.recipe}",
                "an image source with the recipe distill, and only there",
            )
        if self.target.start is not None and training.recipe != "distill":
            raise InputError(
                "target.start",
                f"is given to the recipe {training.recipe}",
                "training.recipe distill",
            )
        if self.target.start is not None and training.branch_steps:
            raise InputError(
                "training.branch_steps", "is given for a target that is there already", "0"
            )
        if self.is_teacherless and training.branch_steps:
            raise InputError(
                "training.branch_steps",
                "needs teachers that can be asked, and none has weights",
                "0, or the teachers' weights",
            )
        if training.archive is not None and training.recipe == "distill":
            raise InputError(
                "training.archive", "nothing is synthesized by the recipe distill", "leave it out"
            )

    def _check_batch(self) -> None:
        # Neighbours are compared for their diversity; every worker has as many of each kind, and
        # as many for each home teacher.
        training, homes = self.training, len(self.heard) if self.has_homes else 1
        unit = math.lcm(2 * homes, training.fresh_every, training.remember_every) * training.workers
        if training.batch_size % unit:
            raise InputError(
                "training.batch_size",
                f"{training.batch_size} does not divide into equal parts",
                f"a multiple of {unit}, for {training.workers} workers",
            )
        for key in ("fresh_every", "remember_every"):
            if homes > 1 and getattr(training, key) > 2:
                raise InputError(
                    f"training.{key}",
                    f"{getattr(training, key)} would leave out whole home teachers",
                    "1 or 2 with single-label teachers of different labels",
                )

    def _check_names(self, key: str, given: Iterable[str]) -> None:
        known = [teacher.name for teacher in self.teachers]
        for name in given:
            if name not in known:
                raise InputError(key, f"no teacher is called {name!r}", f"one of {_some(known)}")

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
    def is_teacherless(self) -> bool:
        """Whether only an archive tells what the teachers said: none of them is there."""
        archived = (self.training.images or "").startswith("archive:")
        local = all(teacher.weights is None for teacher in self.teachers)
        return archived and local

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

    @property
    def labels(self) -> list[str]:
        """The customised label set Y_cst, in the user's order."""
        if self.target.labels != "all":
            return list(self.target.labels)
        return list(dict.fromkeys(label for teacher in self.teachers for label in teacher.labels))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _only(names: Sequence[str], given: object) -> object:
    """What is given by teacher, for some of them; anything else stays as it is."""
    return {n: v for n, v in given.items() if n in names} if isinstance(given, dict) else given


def _refuse_repeats(key: str, values: list[str], what: str) -> None:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise InputError(key, f"the {what} {repeated!r} stands twice", "each once")
