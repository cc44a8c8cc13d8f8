"""From trained dual generators to targets: the best is regrouped, fine-tuned and judged."""

from __future__ import annotations

import torch

from dfka_dist.models.target import TargetNet
from dfka_dist.training.classroom import learned
from dfka_dist.training.collectives import global_mean
from dfka_dist.training.offshoots import Losses, Offshoots, once
from dfka_dist.training.outcome import TUNED, Finished, Learned, Network
from dfka_dist.training.recipes import trained_design
from dfka_dist.training.regroup import DualState
from dfka_dist.training.supply import Supply
from dfka_dist.training.workshop import Workshop


class Finishing:
    """Everything behind a recipe."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop, self._config = workshop, workshop.config
        self._losses: Losses = {}

    def run(self, known: Learned) -> Finished:
        """Choose, regroup, fine-tune."""
        found, best = self._select(known)
        targets = self._targets(known.supply, best)
        if targets[TUNED].design != found[-1].design:
            found = [self._judged("regrouped", targets[TUNED])]
        networks = self._fine_tune(known.supply, targets)
        return Finished([*found, networks.pop(TUNED)], list(networks.values()), self._losses)

    def _select(self, known: Learned) -> tuple[list[Network], DualState]:
        """Every candidate on the probe set, as a target with the branches that were trained."""
        found = []
        target = known.duals[0][1].target(trained_design(self._workshop), self._workshop.teachers)
        for name, dual in known.duals:
            dual.load_into(target)
            found.append(self._judged(name, target))
        best = max(found, key=agreement)
        return found, known.duals[found.index(best)][1]

    def _targets(self, supply: Supply, dual: DualState) -> dict[str, TargetNet]:
        """The targets to be fine-tuned, by name: the one that is wanted, one at each depth, and the
        one of least dual loss; those that are the same once."""
        branching, training = self._workshop.branching, self._config.training
        shoots = Offshoots(self._workshop, supply, dual)
        if training.recipe != "paper" and not training.branch_steps:
            return {TUNED: shoots.target(branching.design())}
        even, asked = shoots.even, [branching.design()] if branching.asked else []
        shoots.grow("branches", [*even.values(), *asked])
        self._losses = shoots.losses()
        least = branching.design(branching.choose(self._losses))
        shoots.grow("chosen", [least])
        named = {TUNED: asked[0] if asked else least, **even, "least dual loss": least}
        return {name: shoots.target(design) for name, design in once(named).items()}

    def _fine_tune(self, supply: Supply, targets: dict[str, TargetNet]) -> dict[str, Network]:
        """Train whole targets, tails included, on the same images."""
        steps, rate = self._config.training.fine_tune_steps, self._config.training.fine_tune_rate
        tuned = targets if steps else {}
        states = learned(
            self._workshop, "fine_tune", supply, tuned, steps=steps, rate=rate, whole=True
        )
        for name, state in states.items():
            targets[name] = TargetNet(targets[name].design)
            targets[name].load_state_dict(state)
        return {name: self._judged(name, target) for name, target in targets.items()}

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
