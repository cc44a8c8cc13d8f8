"""Recipe joint: generator and dual generator in turns, each learning from the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from dfka_dist.losses import LossReport
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import Pending
from dfka_dist.training.aside import Aside, Later
from dfka_dist.training.collectives import average_buffers
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.ledger import Phase
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.regroup import DualState
from dfka_dist.training.rehearsal import Known
from dfka_dist.training.schedule import cosine, weights_at
from dfka_dist.training.supply import rehearsed
from dfka_dist.training.workshop import Workshop, moments


@dataclass(frozen=True)
class Lessons:
    """What a student learns from in the turns of one step."""

    fresh: list[Labelled]
    remembered: Pending[list[Labelled]]
    """Answers are on their way."""


class Joint:
    """The joint phase of a run, and what the dual generator learns after it.

    Args:
        generator: its engine.
        target: whose trunk is the dual generator.
        memory: empty; is filled.
        aside: whoever does the one generator's work beside the other's; None for what fits.
    """

    def __init__(
        self,
        workshop: Workshop,
        generator: Engine,
        target: TargetNet,
        memory: SampleMemory,
        aside: Aside | None = None,
    ) -> None:
        self._workshop, self._memory, self._target = workshop, memory, target
        config = workshop.config
        self._training, self._weights = config.training, config.losses
        self._rehearsal = workshop.rehearsal(memory)
        self._lessons = Lessons([], Known([]))
        self.aside = aside or Aside.fitting(workshop.device)
        self._learning: Pending[None] = Later(lambda: None)
        self._synthesis = workshop.synthesis(generator, self._weights)
        self._engine = workshop.engine(target.trunk, self._training.dual_rate)
        self._dual = Dual(
            engine=self._engine, target=target, panel=workshop.panel, weights=self._weights
        )

    @property
    def engine(self) -> Engine:
        """Of the dual generator."""
        return self._engine

    def synthesize(self, phase: Phase) -> Iterator[tuple[int, DualState]]:
        """Both generators in turns; gives the dual generator at its moments as a candidate."""
        steps = self._training.steps
        if phase.left:
            self._lessons = self._next_lessons(phase.left.start)
        for step in phase.steps():
            reports = self.step(step)
            if self._workshop.is_probed(step + 1, steps):
                self.settle()
                self._workshop.probe_generator(self._synthesis.engine, step + 1)
            self._workshop.diary.tell(step + 1, *reports)
            if step + 1 in moments(steps, self._training.candidates):
                yield step + 1, self._state()
        self.settle()

    def rehearse(self, phase: Phase) -> Iterator[tuple[int, DualState]]:
        """The dual generator alone, on images of the generator's whole way as far as they are
        remembered; gives it as `synthesize` does."""
        training, window = self._training, self._workshop.config.serving.window
        steps = training.rehearsal_steps
        batches = rehearsed(self._rehearsal, "rehearsal", phase.left, window)
        for step, batch in zip(phase.steps(), batches, strict=False):
            rate = cosine(step, steps, training.rehearsal_rate, 0.0)
            report = self._dual.learn(batch, rate)
            self._workshop.diary.tell(step + 1, report)
            if step + 1 in moments(steps, training.candidates):
                yield step + 1, self._state()

    def close(self) -> None:
        """Give back the dual generator's engine."""
        self._engine.destroy()

    def _state(self) -> DualState:
        average_buffers(self._target.trunk)
        return DualState.of_trunk(self._engine.state(), self._target.design)

    def _rate(self, dual_step: int) -> float:
        """Of the first phase: on its way down over both, so that without a rehearsal it ends at 0,
        and the rehearsal begins anew from a rate of its own."""
        training = self._training
        steps = training.steps * training.dual_steps + training.rehearsal_steps
        return cosine(dual_step, steps, training.dual_rate, 0.0)

    def step(self, step: int) -> list[LossReport]:
        """One turn of the generator, and of the dual generator as often as `dual_steps` says.

        The generator's part may not be over when this returns, see `settle`: nobody needs it before
        the next step's images.
        """
        training = self._training
        rate = self._rate(step * training.dual_steps)
        half = training.dual_steps // 2
        drawn = self._workshop.draw("joint", step)
        # The student learns from memory while gradients go back through teachers and generator,
        # and while that makes the next images; the teachers look at what it learns from next at
        # the same time. Which images meet which weights depends on nothing but the step.
        asking = self.aside.now(partial(self.aside.widely, partial(self._synthesis.ask, drawn)))
        reports = self._study(range(half), rate)
        self.settle()
        batch = asking.result()
        weights = weights_at(self._weights, step, training.steps)
        said = self._synthesis.hear(batch, self._target, weights)
        self._memory.add(said.labelled)
        criticism = self._synthesis.criticise(batch, said, weights)
        own_rate = generator_rate(self._workshop, step)
        self._learning = self.aside.later(lambda: self._synthesis.learn(batch, criticism, own_rate))
        # Asked behind the gradients, which are waited for first.
        planned = self._next_lessons(step + 1)
        reports += self._study(range(half, training.dual_steps), rate)
        self._lessons = planned
        self._workshop.keep(step, drawn.asked_for, said.labelled)
        return [criticism.report, *reports[-1:]]

    def settle(self) -> None:
        """Wait for what the generator learns from the last step."""
        self._learning.result()

    def _next_lessons(self, step: int) -> Lessons:
        """What the student learns from in the turns of a step: the newest images, and remembered
        ones that the teachers are asked about again."""
        training = self._training
        if not len(self._memory) or step == training.steps:
            return Lessons([], Known([]))
        turns = range(training.dual_steps)
        fresh = [self._memory.newest(turn, training.fresh_every) for turn in turns]
        streams = [f"memory.{turn}" for turn in turns]
        return Lessons(fresh, self._rehearsal.ask(streams, step, training.remember_every))

    def _study(self, turns: range, rate: float) -> list[LossReport]:
        if not self._lessons.fresh or not turns:
            return []
        lessons, remembered = self._lessons, self._lessons.remembered.result()
        parts = [Labelled.joined(lessons.fresh[turn], remembered[turn]) for turn in turns]
        return [self._dual.learn(part, rate) for part in parts]


def generator_rate(workshop: Workshop, step: int) -> float:
    """From the configured rate to a tenth of it over the first phase."""
    training = workshop.config.training
    return cosine(step, training.steps, training.generator_rate, training.generator_rate / 10)
