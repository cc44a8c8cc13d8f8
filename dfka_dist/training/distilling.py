"""Recipe distill: the dual generator learns from images that are there, and from no generator."""

from __future__ import annotations

from collections.abc import Iterator

from dfka_dist.data import unlabelled
from dfka_dist.models.target import TargetNet
from dfka_dist.training.collectives import average_buffers
from dfka_dist.training.dual import Dual
from dfka_dist.training.regroup import DualState
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Given, Supply
from dfka_dist.training.workshop import Workshop, moments


class Distilling:
    """The only training phase of a run without a generator."""

    def __init__(self, workshop: Workshop, target: TargetNet, supply: Supply) -> None:
        self._workshop, self._target, self._supply = workshop, target, supply
        self._training = workshop.config.training
        self._engine = workshop.engine(target.trunk, self._training.dual_rate)
        self._dual = Dual(
            engine=self._engine,
            target=target,
            panel=workshop.panel,
            weights=workshop.config.losses,
        )

    def run(self) -> Iterator[DualState]:
        """All steps; gives the dual generator at every moment at which it is a candidate."""
        steps = self._training.steps
        for step, batch in enumerate(self._supply.batches("distill", steps)):
            rate = cosine(step, steps, self._training.dual_rate, 0.0)
            self._workshop.diary.tell(step + 1, self._dual.learn(batch, rate))
            if step + 1 in moments(steps, self._training.candidates):
                average_buffers(self._target.trunk)
                yield DualState.of_trunk(self._engine.state(), self._target.design)
        self._engine.destroy()


def given(workshop: Workshop) -> Given:
    """The images of `training.images`."""
    config, image = workshop.config, workshop.branching.design().input
    assert config.training.images is not None
    images = None
    if config.training.images != "noise":
        images = unlabelled(config.training.images, image.size)
    return Given(
        images,
        (image.channels, image.size, image.size),
        workshop.streams,
        workshop.panel,
        workshop.columns,
        config.serving.in_flight,
    )
