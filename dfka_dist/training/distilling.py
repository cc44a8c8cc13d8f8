"""Recipe distill: the dual generator learns from images that are there, and from no generator."""

from __future__ import annotations

from collections.abc import Iterator

from dfka_dist.archive import Archive
from dfka_dist.data import unlabelled
from dfka_dist.models.target import TargetNet
from dfka_dist.training.checkpoint import under
from dfka_dist.training.collectives import average_buffers, rank_and_size
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.ledger import Phase
from dfka_dist.training.probe import MOMENTS
from dfka_dist.training.regroup import DualState
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Archived, Given, Supply
from dfka_dist.training.workshop import Workshop, moments

KEY = "training.images"


class Distilling:
    """The only training phase of a run without a generator.

    The target's tails are the teachers' own and stay as they are, unless there are no teachers.
    """

    def __init__(self, workshop: Workshop, target: TargetNet, supply: Supply) -> None:
        self._workshop, self._target, self._supply = workshop, target, supply
        self._training = workshop.config.training
        whole = workshop.config.is_teacherless or workshop.config.target.start is not None
        target.tails.requires_grad_(whole)
        network = target if whole else target.trunk
        self._engine = workshop.engine(network, self._training.dual_rate)
        self._dual = Dual(
            engine=self._engine,
            target=target,
            panel=workshop.panel,
            weights=workshop.config.losses,
        )

    @property
    def engine(self) -> Engine:
        """Of the dual generator."""
        return self._engine

    def run(self, phase: Phase) -> Iterator[tuple[int, DualState]]:
        """All steps; gives the dual generator at every moment at which it is a candidate."""
        steps = self._training.steps
        batches = self._supply.batches("distill", phase.left)
        for step, batch in zip(phase.steps(), batches, strict=False):
            rate = cosine(step, steps, self._training.dual_rate, 0.0)
            self._workshop.diary.tell(step + 1, self._dual.learn(batch, rate))
            if step + 1 in moments(steps, self._training.candidates):
                average_buffers(self._target)
                yield step + 1, self._state()

    def close(self) -> None:
        """Give back the engine."""
        self._engine.destroy()

    def _state(self) -> DualState:
        state, design = self._engine.state(), self._target.design
        if self._engine.network is not self._target:
            return DualState.of_trunk(state, design)
        dual = DualState.of_trunk(under(state, "trunk."), design)
        dual.tails = {n: under(state, f"tails.{n}.") for n in self._target.tails}
        return dual


def supplied(workshop: Workshop) -> Given | Archived:
    """What `training.images` names; the probe set has its part of it."""
    source = workshop.config.training.images
    assert source is not None
    if source.startswith("archive:"):
        archive = Archive.open(source.removeprefix("archive:"), KEY)
        count = workshop.config.training.probe_images
        learned, apart = archive.set_apart(count)
        workshop.probe.add_labelled(_archived(workshop, apart).probe(count))
        return _archived(workshop, learned)
    found = _given(workshop, source)
    for part in range(MOMENTS):
        for rows in workshop.probe_rows():
            images = found.drawn("probe", part, rows)
            workshop.probe.add(images, workshop.panel.homes_of(rows))
    return found


def _archived(workshop: Workshop, archive: Archive) -> Archived:
    names = list(workshop.panel.voices)
    nobody = len(names)
    return Archived(
        archive,
        tuple(names.index(t.name) if t.name in names else nobody for t in archive.teachers),
        workshop.panel,
        workshop.config.run.seed,
        workshop.config.training.batch_size,
        rank_and_size(),
        workshop.device,
    )


def _given(workshop: Workshop, source: str) -> Given:
    config, image = workshop.config, workshop.branching.design().input
    images = None
    if source != "noise":
        images = unlabelled(source, image.size)
    return Given(
        images,
        (image.channels, image.size, image.size),
        workshop.streams,
        workshop.panel,
        workshop.columns,
        config.serving.window,
        workshop.device,
    )
