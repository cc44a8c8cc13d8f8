"""What comes before regrouping: a recipe trains the dual generator, with a generator or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import Architecture
from dfka_dist.training.blocks import train_blocks
from dfka_dist.training.distilling import Distilling, supplied
from dfka_dist.training.engines import Engine
from dfka_dist.training.joint import Joint, generator_rate
from dfka_dist.training.memory import SampleMemory
from dfka_dist.training.outcome import Learned
from dfka_dist.training.regroup import DualState, State
from dfka_dist.training.supply import Synthesized
from dfka_dist.training.workshop import Workshop, moments


class Recipe:
    """One of joint, paper and distill, as `training.recipe` says.

    Args:
        start: state of the target to go on with, in the recipe distill.
    """

    def __init__(self, workshop: Workshop, start: State | None = None) -> None:
        self._workshop, self._config, self._start = workshop, workshop.config, start

    def run(self) -> Learned:
        """All of its phases."""
        recipes = {"joint": self._joint, "paper": self._paper, "distill": self._distill}
        return recipes[self._config.training.recipe]()

    def _joint(self) -> Learned:
        """Generator and dual generator in turns."""
        workshop, training = self._workshop, self._config.training
        generator, memory = workshop.generator_engine(), workshop.new_memory()
        with workshop.diary.phase("joint", training.steps):
            target = workshop.new_target(trained_design(workshop))
            joint = Joint(workshop, generator, target, memory)
            with closing(joint.aside):
                duals = self._named("joint", training.steps, joint.synthesize())
        if training.rehearsal_steps:
            with workshop.diary.phase("rehearsal", training.rehearsal_steps):
                duals += self._named("rehearsal", training.rehearsal_steps, joint.rehearse())
        joint.close()
        return Learned(duals, self._synthesized(generator, memory), generator)

    def _paper(self) -> Learned:
        """The generator on eq. 11, then the dual generator's blocks on eq. 16."""
        workshop, training = self._workshop, self._config.training
        generator = workshop.generator_engine()
        # There is no student yet that the teachers could disagree with.
        weights = self._config.losses.model_copy(update={"adversarial": 0.0})
        synthesis = workshop.synthesis(generator, weights)
        with workshop.diary.phase("synthesis", training.steps):
            for step in range(training.steps):
                drawn = workshop.draw("synthesis", step)
                batch = synthesis.ask(drawn)
                heard = synthesis.hear(batch, None, weights)
                criticism = synthesis.criticise(batch, heard, weights)
                synthesis.learn(batch, criticism, generator_rate(workshop, step))
                workshop.keep(step, drawn.asked_for, heard.labelled)
                if workshop.is_probed(step + 1, training.steps):
                    workshop.probe_generator(generator, step + 1)
                workshop.diary.tell(step + 1, criticism.report)
        supply = self._synthesized(generator, workshop.new_memory())
        blocks = workshop.branching.trunk.depth
        with workshop.diary.phase("dual", training.block_steps * blocks):
            dual = train_blocks(workshop, supply)
        return Learned([("dual", dual)], supply, generator)

    def _distill(self) -> Learned:
        """The dual generator on images that are given."""
        workshop, training = self._workshop, self._config.training
        supply = supplied(workshop)
        target = workshop.new_target(trained_design(workshop))
        if self._start is not None:
            target.load_state_dict(self._start)
        with workshop.diary.phase("distill", training.steps):
            learning = Distilling(workshop, target, supply).run()
            duals = self._named("distill", training.steps, learning)
        return Learned(duals, supply)

    def _named(
        self, phase: str, steps: int, duals: Iterator[DualState]
    ) -> list[tuple[str, DualState]]:
        """Every candidate of a phase by the step that it is of; this is what runs the phase."""
        own = sorted(moments(steps, self._config.training.candidates))
        return [(f"{phase} {step}", dual) for step, dual in zip(own, duals, strict=True)]

    def _synthesized(self, generator: Engine, memory: SampleMemory) -> Synthesized:
        workshop = self._workshop
        window = self._config.serving.in_flight
        return Synthesized(
            generator_network(generator),
            workshop.draws,
            workshop.panel,
            workshop.columns,
            workshop.rehearsal(memory),
            window,
        )


def trained_design(workshop: Workshop) -> Architecture:
    """What a recipe trains: branches as asked, or at B where they are chosen later."""
    branching = workshop.branching
    deepest = branching.everywhere(branching.trunk.depth)
    return branching.design(deepest if workshop.config.training.branch_steps else None)


def generator_network(generator: Engine) -> GroupStackGenerator:
    """The network of a generator's engine."""
    assert isinstance(generator.network, GroupStackGenerator)
    return generator.network
