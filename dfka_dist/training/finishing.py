"""From trained dual generators to targets: the best is regrouped, fine-tuned and judged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.training.blocks import dual_losses, train_filters
from dfka_dist.training.checkpoint import State
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
        supply, workshop = learned.supply, self._workshop
        found, best = self._select(learned)
        targets = {
            name: best.target(design, workshop.teachers)
            for name, design in self._designs(supply, best).items()
        }
        self._branch_off(supply, targets)
        if targets[TUNED].design != found[-1].design:
            found = [self._judged("regrouped", targets[TUNED])]
        networks = self._fine_tune(supply, targets)
        return Finished([*found, networks.pop(TUNED)], list(networks.values()), self._losses)

    def _select(self, learned: Learned) -> tuple[list[Network], DualState]:
        """Every candidate on the probe set, as a target with the branches that were trained."""
        found = []
        target = learned.duals[0][1].target(trained_design(self._workshop), self._workshop.teachers)
        for name, dual in learned.duals:
            dual.load_into(target)
            found.append(self._judged(name, target))
        best = max(found, key=agreement)
        return found, learned.duals[found.index(best)][1]

    def _designs(self, supply: Supply, dual: DualState) -> dict[str, Architecture]:
        """The targets to be fine-tuned, by name: the one that is wanted, one at each depth, and the
        one of least dual loss; those that are the same once."""
        workshop, branching = self._workshop, self._workshop.branching
        steps = self._branch_steps
        if self._config.training.recipe != "paper":
            if not steps:
                return {TUNED: branching.design()}
            train_filters(workshop, dual, supply, steps)
        self._losses = dual_losses(workshop, dual, supply)
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

    @property
    def _branch_steps(self) -> int:
        """The recipe paper has trained every depth already."""
        training = self._config.training
        return 0 if training.recipe == "paper" else training.branch_steps

    def _branch_off(self, supply: Supply, targets: dict[str, TargetNet]) -> None:
        """Trunk and filters of every target whose branches leave elsewhere than where they were
        trained learn on, each for itself; the teachers' own blocks stay as they are."""
        steps, rate = self._branch_steps, self._config.training.rehearsal_rate
        if not steps:
            return
        trained = trained_design(self._workshop)
        learning = {n: target for n, target in targets.items() if target.design != trained}
        if not learning:  # nobody needs the teachers' answers
            return

        def learner(target: TargetNet) -> Dual:
            target.to(self._workshop.device).tails.requires_grad_(False)
            return self._learner(target, target.trunk, rate)

        for name, state in self._learn("branches", supply, learning, learner, steps, rate).items():
            design = targets[name].design
            targets[name] = DualState.of_trunk(state, design).target(
                design, self._workshop.teachers
            )

    def _fine_tune(self, supply: Supply, targets: dict[str, TargetNet]) -> dict[str, Network]:
        """Train whole targets, tails included, on the same images."""
        steps = self._config.training.fine_tune_steps
        rate = self._config.training.fine_tune_rate

        def learner(target: TargetNet) -> Dual:
            target.to(self._workshop.device).tails.requires_grad_(True)
            return self._learner(target, target, rate)

        tuned = targets if steps else {}
        for name, state in self._learn("fine_tune", supply, tuned, learner, steps, rate).items():
            targets[name] = TargetNet(targets[name].design)
            targets[name].load_state_dict(state)
        return {name: self._judged(name, target) for name, target in targets.items()}

    def _learner(self, target: TargetNet, network: nn.Module, rate: float) -> Dual:
        return Dual(
            engine=self._workshop.engine(network, rate),
            target=target,
            panel=self._workshop.panel,
            weights=self._config.losses,
        )

    def _learn(
        self,
        phase: str,
        supply: Supply,
        targets: dict[str, TargetNet],
        learner: Callable[[TargetNet], Dual],
        steps: int,
        rate: float,
    ) -> dict[str, State]:
        """A phase in which all learn from the same images; what became of their networks, which
        are not to be used any more."""

        def learned() -> dict[str, State]:
            learners = {name: learner(target) for name, target in targets.items()}
            self._go_through(phase, supply, learners, steps, rate)
            states = {}
            for name, each in learners.items():
                average_buffers(each.engine.network)
                states[name] = each.engine.state()
                each.engine.destroy()
            return states

        return self._workshop.ledger.once(phase, learned)

    def _go_through(
        self, name: str, supply: Supply, learners: dict[str, Dual], steps: int, rate: float
    ) -> None:
        ledger = self._workshop.ledger
        held = {f"{name}-{index}": one.engine for index, one in enumerate(learners.values())}
        for key, engine in held.items():
            ledger.hold(key, engine)
        with ledger.phase(name, steps) as phase:
            batches = supply.batches(name, phase.left)
            for step, batch in zip(phase.steps(), batches, strict=False):
                own = cosine(step, steps, rate, 0.0)
                reports = [learner.learn(batch, own) for learner in learners.values()]
                self._workshop.diary.tell(step + 1, *reports[:1])
        ledger.release(*held)

    def _judged(self, name: str, target: TargetNet) -> Network:
        target = target.to(self._workshop.device).eval()
        data_free = self._workshop.judges.judge(target)
        # All workers must come to the same decisions.
        everywhere = global_mean(torch.tensor(data_free["agreement"], dtype=torch.float64))
        data_free["agreement"] = round(everywhere.item(), 6)
        state = {key: value.detach().cpu().clone() for key, value in target.state_dict().items()}
        return Network(name, target.design, state, data_free)


def agreement(network: Network) -> float:
    """With the teachers, on the probe set."""
    return float(network.data_free["agreement"])
