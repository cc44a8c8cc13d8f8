"""One whole run on one worker: a recipe, regrouping, fine-tuning. It knows no launcher."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.checkpoint import State
from dfka_dist.training.collectives import global_sum
from dfka_dist.training.diary import Record
from dfka_dist.training.finishing import Finishing, agreement
from dfka_dist.training.ledger import Shelf
from dfka_dist.training.outcome import SAMPLES, SHOWN, Outcome
from dfka_dist.training.probe import MOMENTS, Contest
from dfka_dist.training.recipes import Recipe, generator_network
from dfka_dist.training.workshop import Workshop


class Amalgamator:
    """Makes one target of several teachers.

    Args:
        teachers: local or served, all of which know a customised label.
        report: is given one record every `training.report_every` steps, on rank 0.
        device: of the networks.
        start: state of the target to go on with, in the recipe distill.
        shelf: of its checkpoints: the run goes on from the newest.
        stopping: whether this worker was told to make a checkpoint and stop; asked at every step.
        contest: in which the run takes part.
    """

    def __init__(
        self,
        config: RunConfig,
        teachers: Teachers,
        report: Callable[[Record], None],
        device: torch.device | None = None,
        start: State | None = None,
        shelf: Shelf | None = None,
        stopping: Callable[[], bool] = lambda: False,
        contest: Contest | None = None,
    ) -> None:
        here = device or torch.device("cpu")
        self._workshop = Workshop(config, teachers, report, here, shelf, stopping, contest)
        self._recipe = Recipe(self._workshop, start)

    @property
    def beginning(self) -> str | None:
        """Where the run goes on; None if it keeps no checkpoints."""
        return self._workshop.ledger.beginning

    @property
    def step(self) -> int:
        """Steps of all phases so far."""
        return self._workshop.diary.global_step

    def run(self) -> Outcome:
        """The whole run.

        Raises:
            Interrupted: it was told to stop.
        """
        with self._workshop.archiving():
            learned = self._recipe.run()
        finished = Finishing(self._workshop).run(learned)
        samples = None
        if learned.generator is not None:
            network = generator_network(learned.generator)
            samples = self._workshop.draws.sheet(network, SAMPLES, SHOWN)
            learned.generator.destroy()
        used = torch.tensor(time.process_time(), device=self._workshop.device)
        return Outcome(
            network=max(reversed(finished.candidates), key=agreement),
            candidates=finished.candidates,
            depths=finished.depths,
            dual_losses=finished.dual_losses,
            samples=samples,
            phases=self._workshop.diary.phases,
            cpu_seconds=global_sum(used).item(),
            saving_seconds=self._workshop.ledger.saving_seconds,
            share=self._share(),
        )

    def _share(self) -> tuple[Tensor, Tensor] | None:
        workshop = self._workshop
        if workshop.contest is None:
            return None
        return workshop.probe.share(workshop.config.training.probe_images // MOMENTS)
