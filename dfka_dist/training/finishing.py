"""From trained dual generators to targets: the best is regrouped, fine-tuned and judged."""

from __future__ import annotations

import torch

from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.training.blocks import dual_losses, train_filters
from dfka_dist.training.collectives import average_buffers, global_mean
from dfka_dist.training.dual import Dual
from dfka_dist.training.outcome import TUNED, Finished, Learned, Network
from dfka_dist.training.recipes import trained_design
from dfka_dist.training.regroup import DualState
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Supply
from dfka_dist.training.workshop import Workshop


class Finishing:
    """Everything behind a recipe."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop, self._config = workshop, workshop.config
        self._losses: dict[str, dict[int, float]] = {}

    def run(self, learned: Learned) -> Finished:
        """Choose, regroup, fine-tune."""
        found, best = self._select(learned)
        designs = self._designs(learned, best)
        wanted = designs[TUNED]
        if wanted != found[-1].design:
            found = [self._judged("regrouped", best.target(wanted, self._workshop.teachers))]
        networks = self._fine_tune(learned.supply, best, designs)
        candidates = [*found, networks.pop(TUNED)]
        return Finished(candidates, list(networks.values()), self._losses)

    def _select(self, learned: Learned) -> tuple[list[Network], DualState]:
        """Every candidate on the probe set, as a target with the branches that were trained."""
        found = []
        target = learned.duals[0][1].target(trained_design(self._workshop), self._workshop.teachers)
        for name, dual in learned.duals:
            dual.load_into(target)
            found.append(self._judged(name, target))
        best = max(found, key=agreement)
        return found, learned.duals[found.index(best)][1]

    def _designs(self, learned: Learned, dual: DualState) -> dict[str, Architecture]:
        """The targets to be fine-tuned, by name: the one that is wanted, one at each depth, and the
        one of least dual loss; those that are the same once."""
        workshop, training = self._workshop, self._config.training
        branching = workshop.branching
        steps = training.branch_steps
        if training.recipe != "paper" and not steps:
            return {TUNED: branching.design()}
        if training.recipe != "paper":
            with workshop.diary.phase("branches", steps):
                train_filters(workshop, dual, learned.supply, steps)
        self._losses = dual_losses(workshop, dual, learned.supply)
        chosen = branching.asked or branching.choose(self._losses)
        every = {
            f"depth {depth}": branching.design(branching.everywhere(depth))
            for depth in range(1, branching.trunk.depth + 1)
        }
        every["least dual loss"] = branching.design(branching.choose(self._losses))
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
        everywhere = global_mean(torch.tensor(data_free["agreement"], dtype=torch.float64))
        data_free["agreement"] = round(everywhere.item(), 6)
        state = {key: value.detach().cpu().clone() for key, value in target.state_dict().items()}
        return Network(name, target.design, state, data_free)


def agreement(network: Network) -> float:
    """With the teachers, on the probe set."""
    return float(network.data_free["agreement"])
