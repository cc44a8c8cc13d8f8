"""What all phases of a run share on one worker."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from dfka_dist.archive import ArchivedTeacher, ArchiveWriter, Contents, keep_only
from dfka_dist.config import LossWeights, RunConfig
from dfka_dist.errors import InputError
from dfka_dist.models.filters import Shape
from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.micro import in_parts
from dfka_dist.training import computing
from dfka_dist.training.archiving import Archiving
from dfka_dist.training.branching import Branching, build_target
from dfka_dist.training.collectives import Vote, rank_and_size
from dfka_dist.training.diary import Diary, Record
from dfka_dist.training.draws import Drawn, Draws
from dfka_dist.training.engines import Engine
from dfka_dist.training.ledger import Ledger, Shelf
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.panel import Panel
from dfka_dist.training.probe import MOMENTS, Contest, ProbeSet
from dfka_dist.training.rehearsal import Rehearsal
from dfka_dist.training.streams import Streams
from dfka_dist.training.synthesis import Synthesis

log = logging.getLogger(__name__)

ARCHIVE = "training.archive"
"""Key that errors about the archive name."""


class Workshop:
    """The run's configuration, teachers and draws, and new networks and engines of it.

    Args:
        teachers: local or served, all of which know a customised label.
        report: is given records, on rank 0.
        device: of the networks.
        shelf: of its checkpoints; None for none.
        stopping: whether this worker was told to make one and stop.
        contest: in which the run takes part; None for a run of its own.
    """

    def __init__(
        self,
        config: RunConfig,
        teachers: Teachers,
        report: Callable[[Record], None],
        device: torch.device,
        shelf: Shelf | None = None,
        stopping: Callable[[], bool] = lambda: False,
        contest: Contest | None = None,
    ) -> None:
        teachers = in_parts(teachers, config.training.micro_batch)
        self.config, self.teachers, self.device = config, teachers, device
        rank, size = rank_and_size()
        share = config.training.batch_size // size
        self.columns = range(rank * share, (rank + 1) * share)
        self.streams = Streams(config.run.seed)
        self.branching = Branching(config, teachers.descriptions)
        self.diary = Diary(config.training, teachers, None if rank else report)
        kept = config.training.checkpoint
        self.ledger = Ledger(self.diary, kept, shelf, stopping, Vote(device))
        before = self.ledger.began_with(computing.NAME)
        own = computing.agreed(config.training.precision, device, before)
        self.ledger.facts |= own.told()
        self.precision = own.precision
        log.info("computing in %s on %s", self.precision, device)
        asked_in = config.serving.precision or self.precision
        self.panel = Panel(config, teachers, self.columns, asked_in)
        pools = self.panel.pools(config.asked_labels, len(config.labels))
        self.draws = Draws(config, pools, device)
        self.probe = ProbeSet(self.panel)
        self.contest = contest
        self.judges = self.probe
        if contest is not None and contest.probe is not None:
            self.judges = ProbeSet(self.panel)
            self.judges.give(contest.probe)
        self.archive: ArchiveWriter | None = None

    def new_memory(self) -> SampleMemory:
        """An empty one, of this worker's columns."""
        capacity = self.config.training.memory_megabytes * 2**20 // rank_and_size()[1]
        return SampleMemory(
            columns=self.columns, capacity=capacity, streams=self.streams, device=self.device
        )

    def rehearsal(self, memory: SampleMemory) -> Rehearsal:
        """Of a memory's images."""
        training, weights = self.config.training, self.config.losses
        counting = [name for name in self.panel.voices if weights.lambda_of(name)]
        return Rehearsal(
            memory, self.panel, self.streams, training.move, training.mix, counting or None
        )

    def new_generator(self) -> GroupStackGenerator:
        """With random weights, and the shapes of the largest teacher's block features."""
        descriptions = self.teachers.descriptions
        reference = max(descriptions.values(), key=lambda known: known.parameters)
        spec, image = self.config.generator, self.branching.design().input
        shapes = [(image.channels, image.size, image.size), *reference.shapes[1:-1]]
        filtered: dict[str, Sequence[Shape]] = {}
        if self.config.losses.group:
            filtered = {
                name: [known.shapes[known.matching(d, len(shapes))] for d in range(len(shapes))]
                for name, known in descriptions.items()
            }
        with self.seeded(1):
            return GroupStackGenerator(
                latent=spec.latent,
                shapes=shapes,
                teachers=filtered,
                labels=len(self.config.asked_labels),
                width=spec.width,
                label_scale=spec.label_scale,
            ).to(self.device)

    def new_target(self, design: Architecture) -> TargetNet:
        """With a trunk of random weights."""
        with self.seeded(2):
            return build_target(design, self.teachers).to(self.device)

    def engine(
        self, network: nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> Engine:
        """That trains a network."""
        return Engine(
            network,
            micro_batch=len(self.columns),
            zero_stage=self.config.training.zero_stage,
            precision=self.precision,
            rate=rate,
            betas=betas,
            more=self.config.training.deepspeed,
        )

    def generator_engine(self) -> Engine:
        """That trains a new generator."""
        return self.engine(
            self.new_generator(), self.config.training.generator_rate, betas=(0.5, 0.99)
        )

    def draw(self, stream: str, step: int) -> Drawn:
        """This worker's share of what a batch is made of."""
        noise, asked_for = self.draws.latents(stream, step, self.columns)
        described = self.teachers.descriptions.items()
        targets = {n: self.draws.targets(asked_for, d.spec.labels) for n, d in described}
        jitter = self.config.training.jitter
        moves = self.draws.moves(stream, step, self.columns) if jitter else None
        return Drawn(noise, asked_for, targets, moves)

    def synthesis(self, generator: Engine, weights: LossWeights) -> Synthesis:
        """The generator's side of the game."""
        jitter = self.config.training.jitter
        return Synthesis(engine=generator, panel=self.panel, weights=weights, jitter=jitter)

    def keep(self, step: int, asked_for: Tensor, labelled: Labelled) -> None:
        """Write synthesized images and answers to the archive, if there is to be one."""
        if self.archive is not None:
            self.archive.add(
                step=step,
                first_column=self.columns.start,
                images=labelled.images,
                asked_for=asked_for[:, : len(self.config.labels)],
                homes=labelled.homes,
                logits=labelled.logits,
            )

    @contextmanager
    def archiving(self) -> Iterator[None]:
        """The archive is open for `keep`; complete at the end.

        Raises:
            InputError: the run began without one, or what it has written there is gone.
        """
        uri, design = self.config.training.archive, self.branching.design()
        if uri is None:
            yield
            return
        image = design.input
        teachers = [
            ArchivedTeacher(name=n, task=d.spec.task, labels=d.spec.labels, sha256=d.sha256)
            for n, d in self.teachers.descriptions.items()
        ]
        contents = Contents(
            run=self.config.run.name,
            teachers=teachers,
            labels=design.labels,
            shape=(image.channels, image.size, image.size),
        )
        rank = rank_and_size()[0]
        lost = self.config.training.checkpoint.every or sys.maxsize
        archiving = Archiving(
            partial(keep_only, uri, ARCHIVE, contents, lost=lost),
            lambda shards: ArchiveWriter(uri, contents, rank=rank, shards=shards),
        )
        if self.ledger.began_without("archive"):
            raise InputError(ARCHIVE, "the run began without one", "leave it out, or begin anew")
        self.ledger.hold("archive", archiving)
        with archiving.writing(rank) as self.archive:
            yield
        self.archive = None

    def is_probed(self, step: int, steps: int) -> bool:
        """Whether the probe set has its part of the generator after this step of a phase."""
        return step in moments(steps, MOMENTS)

    def probe_generator(self, generator: Engine, step: int) -> None:
        """Let the probe set have its part of a generator."""
        assert isinstance(generator.network, GroupStackGenerator)
        for rows in self.probe_rows():
            images = self.draws.synthesize(generator.network, "probe", step, rows).images
            self.probe.add(images, self.panel.homes_of(rows))

    def probe_rows(self) -> list[range]:
        """One generator's part of the probe set, no more at once than a batch; the same on every
        worker."""
        training = self.config.training
        part = range(training.probe_images // MOMENTS)
        return [part[i : i + training.batch_size] for i in part[:: training.batch_size]]

    @contextmanager
    def seeded(self, salt: int) -> Iterator[None]:
        """Random weights that depend on nothing but the run's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(1000 * self.config.run.seed + salt)
            yield


def moments(steps: int, count: int) -> set[int]:
    """Equally spaced steps of a phase, its last among them; the first step is 1."""
    return {max(1, round(steps * (index + 1) / count)) for index in range(count)}
