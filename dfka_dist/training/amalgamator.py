"""One whole run on one worker: a recipe, regrouping, fine-tuning. It knows no launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.teachers.interface import Teachers
from dfka_dist.training.blocks import dual_losses, train_blocks, train_filters
from dfka_dist.training.collectives import average_buffers, global_mean, global_sum
from dfka_dist.training.diary import Record
from dfka_dist.training.distilling import Distilling, supplied
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.joint import Joint, generator_rate
from dfka_dist.training.regroup import DualState
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Supply, Synthesized
from dfka_dist.training.workshop import Workshop, moments

SAMPLES = 10  # even: two neighbours have the same label
"""Synthesized images shown for each label."""
TUNED = "fine-tuned"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """One target that came out of a run."""

    name: str
    design: Architecture
    state: State
    data_free: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, on every rank alike."""

    network: Network
    """The result."""
    candidates: list[Network]
    """What the result was chosen from, in the order of time; the result is among them."""
    depths: list[Network]
    """The same target with all branches at depth 1, 2, .. B-1."""
    dual_losses: dict[str, dict[int, float]]
    """L_d^{b,m} per teacher and depth; empty where it was not measured."""
    samples: Tensor | None
    """(labels * SAMPLES, C, H, W) in [0, 1], label after label; None without a generator."""
    phases: list[dict[str, Any]]
    cpu_seconds: float
    """Of all workers."""

    @property
    def networks(self) -> list[Network]:
        """Everything that can be scored, each once."""
        return [*self.candidates, *self.depths]

    @property
    def design(self) -> Architecture:
        """Of the result."""
        return self.network.design

    @property
    def state(self) -> State:
        """Of the result."""
        return self.network.state

    @property
    def data_free(self) -> dict[str, Any]:
        """Of the result."""
        return self.network.data_free


@dataclass
class Learned:
    """What a recipe leaves to be regrouped and fine-tuned."""

    duals: list[tuple[str, DualState]]
    """Candidates, in the order of time."""
    supply: Supply
    generator: Engine | None = None
    losses: dict[str, dict[int, float]] = field(default_factory=dict)


class Amalgamator:
    """Makes one target of several teachers.

    Args:
        teachers: local or served, all of which know a customised label.
        report: is given one record every `training.report_every` steps, on rank 0.
        device: of the networks.
        start: state of the target to go on with, in the recipe distill.
    """

    def __init__(
        self,
        config: RunConfig,
        teachers: Teachers,
        report: Callable[[Record], None],
        device: torch.device | None = None,
        start: State | None = None,
    ) -> None:
        self._config, self._start = config, start
        self._workshop = Workshop(config, teachers, report, device or torch.device("cpu"))

    def run(self) -> Outcome:
        """The whole run."""
        teachers = self._workshop.teachers
        recipe = {"joint": self._joint, "paper": self._paper, "distill": self._distill}
        with self._workshop.archiving():
            learned = recipe[self._config.training.recipe]()
        found, best = self._select(learned)
        designs = self._designs(learned, best)
        wanted = designs[TUNED]
        if wanted != found[-1].design:
            found = [self._judged("regrouped", best.target(wanted, teachers))]
        networks = self._fine_tune(learned.supply, best, designs)
        candidates = [*found, networks.pop(TUNED)]
        result = max(reversed(candidates), key=_agreement)
        samples = None
        if learned.generator is not None:
            samples = self._workshop.draws.sheet(_plain(learned.generator), SAMPLES)
            learned.generator.destroy()
        used = torch.tensor(time.process_time(), device=self._workshop.device)
        return Outcome(
            network=result,
            candidates=candidates,
            depths=list(networks.values()),
            dual_losses=learned.losses,
            samples=samples,
            phases=self._workshop.diary.phases,
            cpu_seconds=global_sum(used).item(),
        )

    def _joint(self) -> Learned:
        """Generator and dual generator in turns."""
        workshop, training = self._workshop, self._config.training
        generator, memory = workshop.generator_engine(), workshop.new_memory()
        with workshop.diary.phase("joint", training.steps):
            joint = Joint(workshop, generator, workshop.new_target(self._trained_design()), memory)
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
                generator.network.train()
                drawn = workshop.draw("synthesis", step)
                batch = synthesis.ask(drawn)
                criticism = synthesis.criticise(batch, None, weights)
                synthesis.learn(batch, criticism, generator_rate(workshop, step))
                workshop.keep(step, drawn.asked_for, criticism.labelled)
                workshop.probe_generator(generator, step + 1, training.steps)
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
        target = workshop.new_target(self._trained_design())
        if self._start is not None:
            target.load_state_dict(self._start)
        with workshop.diary.phase("distill", training.steps):
            learning = Distilling(workshop, target, supply).run()
            duals = self._named("distill", training.steps, learning)
        return Learned(duals, supply)

    def _trained_design(self) -> Architecture:
        """What the first phase trains: branches as asked, or at B where they are chosen later."""
        branching = self._workshop.branching
        deepest = branching.everywhere(branching.trunk.depth)
        return branching.design(deepest if self._config.training.branch_steps else None)

    def _named(
        self, phase: str, steps: int, duals: Iterator[DualState]
    ) -> list[tuple[str, DualState]]:
        """Every candidate of a phase by the step that it is of; this is what runs the phase."""
        own = sorted(moments(steps, self._config.training.candidates))
        return [(f"{phase} {step}", dual) for step, dual in zip(own, duals, strict=True)]

    def _synthesized(self, generator: Engine, memory: Any) -> Synthesized:
        workshop = self._workshop
        window = self._config.serving.in_flight
        return Synthesized(
            _plain(generator),
            workshop.draws,
            workshop.panel,
            workshop.columns,
            workshop.rehearsal(memory),
            window,
        )

    def _select(self, learned: Learned) -> tuple[list[Network], DualState]:
        """Every candidate on the probe set, as a target with the branches that were trained."""
        found = []
        target = learned.duals[0][1].target(self._trained_design(), self._workshop.teachers)
        for name, dual in learned.duals:
            dual.load_into(target)
            found.append(self._judged(name, target))
        best = max(found, key=_agreement)
        return found, learned.duals[found.index(best)][1]

    def _designs(self, learned: Learned, dual: DualState) -> dict[str, Architecture]:
        """The targets to be fine-tuned, by name: the one that is wanted, and one at each depth."""
        workshop, training = self._workshop, self._config.training
        branching = workshop.branching
        steps = training.branch_steps
        if training.recipe != "paper" and not steps:
            return {TUNED: branching.design()}
        if training.recipe != "paper":
            with workshop.diary.phase("branches", steps):
                train_filters(workshop, dual, learned.supply, steps)
        learned.losses = dual_losses(workshop, dual, learned.supply)
        chosen = branching.asked or branching.choose(learned.losses)
        every = {
            f"depth {depth}": branching.design(branching.everywhere(depth))
            for depth in range(1, branching.trunk.depth + 1)
        }
        every["least dual loss"] = branching.design(branching.choose(learned.losses))
        designs = {TUNED: branching.design(chosen)}
        for name, design in every.items():
            if design not in designs.values():
                designs[name] = design
        return designs

    def _fine_tune(
        self, supply: Supply, dual: DualState, designs: dict[str, Architecture]
    ) -> dict[str, Network]:
        """Train whole targets, tails included, on the same images."""
        workshop, training = self._workshop, self._config.training
        targets = {n: dual.target(d, workshop.teachers) for n, d in designs.items()}
        steps = {
            name: training.fine_tune_steps
            if name == TUNED
            else min(training.branch_steps or training.fine_tune_steps, training.fine_tune_steps)
            for name in targets
        }
        learners = {name: self._learner(target) for name, target in targets.items() if steps[name]}
        with workshop.diary.phase("fine_tune", training.fine_tune_steps):
            for step, batch in enumerate(supply.batches("fine_tune", training.fine_tune_steps)):
                for name, learner in reversed(learners.items()):
                    if step < steps[name]:
                        rate = cosine(step, steps[name], training.fine_tune_rate, 0.0)
                        report = learner.learn(batch, rate)
                workshop.diary.tell(step + 1, report)
        for name, learner in learners.items():
            average_buffers(targets[name])
            state = learner.engine.state()
            learner.engine.destroy()
            targets[name] = TargetNet(designs[name])
            targets[name].load_state_dict(state)
        return {name: self._judged(name, target) for name, target in targets.items()}

    def _learner(self, target: TargetNet) -> Dual:
        target.to(self._workshop.device).tails.requires_grad_(True)
        return Dual(
            engine=self._workshop.engine(target, self._config.training.fine_tune_rate),
            target=target,
            panel=self._workshop.panel,
            weights=self._config.losses,
        )

    def _judged(self, name: str, target: TargetNet) -> Network:
        target = target.to(self._workshop.device).eval()
        data_free = self._workshop.probe.judge(target)
        # All workers must come to the same decisions.
        agreement = global_mean(torch.tensor(data_free["agreement"], dtype=torch.float64))
        data_free["agreement"] = round(agreement.item(), 6)
        state = {key: value.detach().cpu().clone() for key, value in target.state_dict().items()}
        return Network(name, target.design, state, data_free)


def _agreement(network: Network) -> float:
    agreement: float = network.data_free["agreement"]
    return agreement


def _plain(generator: Engine) -> GroupStackGenerator:
    assert isinstance(generator.network, GroupStackGenerator)
    return generator.network
