"""What is learned and how: weights of the losses, and the trainer."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dfka_dist.config.values import (
    Count,
    Cpus,
    Few,
    ImageSource,
    MaybeNone,
    Name,
    Node,
    Precision,
    Rate,
    Seconds,
    Weight,
)

YOURS = (
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "dump_state",
    "flops_profiler",
    "gradient_clipping",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)
"""What may be said of DeepSpeed's configuration; the rest a run says itself, or does not have.
DeepSpeed passes over keys that it does not know."""


def _yours(given: dict[str, Any]) -> dict[str, Any]:
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError("zero_optimization is no mapping || its own keys below it")
    if "stage" in zero:
        raise ValueError("zero_optimization.stage is not to be set here || training.zero_stage")
    for key in given:
        if key not in YOURS:
            near = difflib.get_close_matches(key, YOURS, 1)
            remedy = near[0] if near else f"one of {', '.join(YOURS)}"
            raise ValueError(f"{key} is not to be set here || {remedy}")
    return given


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


class CheckpointSpec(Node):
    """What a run keeps of itself while it goes on."""

    every: MaybeNone = 500
    """Steps, of all phases together, from one checkpoint to the next; 0 for none."""
    keep: Count = 2
    """How many of the newest stay."""
    storage: str | None = None
    """Folder or pyarrow.fs URI that all workers reach; the run's are in a folder of its name there.
    Without it they lie in the output folder, if the cluster has one node. A URI, or a shared path,
    gets a copy of the finished output folder too."""
    on_failure: Literal["go_on", "end"] = "go_on"
    """What a run does when one cannot be written: go on, and try again the next time, or end."""
    grace: Seconds = 60.0
    """For a run that is told to stop, to come to the end of a step and make one more."""
    shared: bool = False
    """A storage that is a local path is the same disk on all nodes."""


class Elastic(Node):
    """A number of workers that may change while a run goes on."""

    min: Few
    max: Few

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"from {self.min} to {self.max} is no range || min at most max")
        return self


JOINT_STEPS = 400
DISTILL_STEPS = 5000
"""About as many as the dual generator makes by the default of the recipe joint."""


class TrainingSpec(Node):
    """How long, how large, how exact."""

    recipe: Literal["joint", "paper", "distill"] = "joint"
    """joint: both generators in turns; paper: one after the other, block by block; distill: no
    generator, the target learns from `images`."""
    steps: Count = JOINT_STEPS
    """Of the recipe's first phase: joint, synthesis, or distill; of the last 5,000 if not given."""
    rehearsal_steps: MaybeNone = 3000
    """Of the dual generator alone, on remembered images, behind the recipe joint's first phase."""
    block_steps: Count = 200
    """Of every block of the dual generator; recipe paper."""
    images: ImageSource | None = None
    """What the recipe distill learns from; never labels, only what the teachers say of images."""
    archive: str | None = None
    """Where every synthesized image is kept with the teachers' answers: a folder or pyarrow.fs
    URI."""
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 128
    """Synthesized images a step, over all workers together; one that is not given is the nearest
    below 128 that all workers and home teachers can have equal parts of."""
    micro_batch: Count | None = None
    """Most images that a teacher is asked about at once; without it all of a worker's. What a
    server keeps of them is bounded by `serving.cache_megabytes`, what it let go is computed again,
    and the gradient is that of the whole batch."""
    precision: Literal["auto"] | Precision = "auto"
    """Of the networks' forward and backward; auto is bf16 where the hardware has it, else fp32."""
    workers: Few | Elastic = 1
    """A number, or {min, max}: as many as there is room for, the run going on with fewer when a
    node is lost and with more when there is one."""
    zero_stage: Literal[1, 2, 3] = 1
    deepspeed: Annotated[dict[str, Any], AfterValidator(_yours)] = {}
    """Merged into what DeepSpeed is told of every engine: gradient_clipping, what offloads or
    overlaps under zero_optimization, and so on."""
    sampled_labels: bool = True
    """Ask for sampled label sets; otherwise eq. 5 takes the teachers' own decisions as targets."""
    dual_steps: Annotated[int, Field(ge=1, le=1000)] = 4
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
    each of them, at the rate of the rehearsal; 0: no such targets. Half of `steps` for the recipe
    joint if not given, else 0: the recipe paper has trained every depth already, and needs none."""
    candidates: Count = 4
    """Moments of the first phase, and of the rehearsal, whose dual generators are compared without
    data; the best is kept."""
    probe_images: Annotated[int, Field(ge=64, le=2**24)] = 4096
    """On which they are compared: of generators at four moments in equal parts, and all of them
    again mixed and moved. Kept in 32 bits; fewer make do with less memory for large images."""
    threads: Few | None = None
    """CPU threads of an operation in a worker; without it the machine's cores but one, shared by
    the workers. A worker that is alone and has one lets both generators compute at once, one
    each."""
    worker_cpus: Cpus = 1.0
    worker_gpus: Literal[0, 1] = 0
    node_labels: dict[str, str] = {}
    """Ray's labels of the nodes where workers may be; without any all nodes."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    report_every: Count = 10
    max_failures: MaybeNone = 3
    """How often workers that died are started again, from the newest checkpoint."""
    timeout: Seconds = 900.0
    """Seconds after which a collective that waits ends the run; more than `serving.timeout`, so
    that a teacher that is late is named before a worker that waits for it."""
    start_timeout: Seconds = 600.0
    """Seconds without any worker, because there is no room or nodes are still to come, after which
    the run ends."""
    quiet_timeout: Seconds = 14_400.0
    """Seconds with workers of which none comes to another step, after which the run ends: more
    than a save, or the judging at the end, should ever take."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_recipe(cls, given: Any) -> Any:
        """Steps that are not given are as many as the recipe needs."""
        if not isinstance(given, dict):
            return given
        if given.get("recipe") == "distill":
            return {"steps": DISTILL_STEPS} | given
        steps = given.get("steps", JOINT_STEPS)
        if given.get("recipe", "joint") != "joint" or not isinstance(steps, int):
            return given
        return {"branch_steps": steps // 2} | given

    @property
    def worker_range(self) -> range:
        """All numbers of workers that there may be."""
        own = self.workers
        return range(own, own + 1) if isinstance(own, int) else range(own.min, own.max + 1)
