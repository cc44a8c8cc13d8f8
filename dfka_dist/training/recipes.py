"""What comes before regrouping: a recipe trains the dual generator, with a generator or without."""

from __future__ import annotations

from contextlib import closing

from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import Architecture
from dfka_dist.training.blocks import train_blocks
from dfka_dist.training.checkpoint import State
from dfka_dist.training.distilling import Distilling, supplied
from dfka_dist.training.engines import Engine
from dfka_dist.training.joint import Joint, generator_rate
from dfka_dist.training.memory import SampleMemory
from dfka_dist.training.outcome import Learned
from dfka_dist.training.regroup import Candidates, DualState
from dfka_dist.training.supply import Synthesized
from dfka_dist.training.workshop import Workshop


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
        workshop, training, ledger = self._workshop, self._config.training, self._workshop.ledger
        generator, memory, candidates = self._generator(), workshop.new_memory(), Candidates()
        ledger.hold("memory", memory)
        ledger.hold("candidates", candidates)
        joint = Joint(workshop, generator, workshop.new_target(trained_design(workshop)), memory)
        ledger.hold("dual", joint.engine)
        with closing(joint.aside), ledger.phase("joint", training.steps, joint.settle) as phase:
            for step, dual in joint.synthesize(phase):
                self._offer(candidates, f"joint {step}", dual)
        if training.rehearsal_steps:
            with ledger.phase("rehearsal", training.rehearsal_steps) as phase:
                for step, dual in joint.rehearse(phase):
                    self._offer(candidates, f"rehearsal {step}", dual)
        ledger.release("dual")
        joint.close()
        return Learned(candidates.named, self._synthesized(generator, memory), generator)

    def _paper(self) -> Learned:
        """The generator on eq. 11, then the dual generator's blocks on eq. 16."""
        workshop, training = self._workshop, self._config.training
        generator = self._generator()
        # There is no student yet that the teachers could disagree with.
        weights = self._config.losses.model_copy(update={"adversarial": 0.0})
        synthesis = workshop.synthesis(generator, weights)
        with workshop.ledger.phase("synthesis", training.steps) as phase:
            for step in phase.steps():
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
        with workshop.ledger.phase("dual", training.block_steps * blocks) as phase:
            dual = train_blocks(workshop, supply, phase)
        return Learned([("dual", dual)], supply, generator)

    def _distill(self) -> Learned:
        """The dual generator on images that are given."""
        workshop, training, candidates = self._workshop, self._config.training, Candidates()
        supply = supplied(workshop)
        target = workshop.new_target(trained_design(workshop))
        if self._start is not None:
            target.load_state_dict(self._start)
        workshop.ledger.hold("candidates", candidates)
        distilling = Distilling(workshop, target, supply)
        workshop.ledger.hold("dual", distilling.engine)
        with workshop.ledger.phase("distill", training.steps) as phase:
            for step, dual in distilling.run(phase):
                self._offer(candidates, f"distill {step}", dual)
        workshop.ledger.release("dual")
        distilling.close()
        return Learned(candidates.named, supply)

    def _offer(self, candidates: Candidates, name: str, dual: DualState) -> None:
        """Another candidate; in a contest it is judged at once."""
        candidates.add(name, dual)
        workshop = self._workshop
        if workshop.judges is not workshop.probe and workshop.diary.is_heard:
            target = dual.target(trained_design(workshop), workshop.teachers)
            found = workshop.judges.judge(target.to(workshop.device).eval())
            workshop.diary.judge(found["agreement"])

    def _generator(self) -> Engine:
        """Of a new generator; it is held, and so is what the probe set has of it."""
        ledger, generator = self._workshop.ledger, self._workshop.generator_engine()
        ledger.hold("generator", generator)
        ledger.hold("probe", self._workshop.probe)
        return generator

    def _synthesized(self, generator: Engine, memory: SampleMemory) -> Synthesized:
        workshop = self._workshop
        window = self._config.serving.window
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
