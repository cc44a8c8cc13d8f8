"""One step of the dual generator, or of the target in its place: distil what the teachers said
(eq. 13, 14)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights, Task
from dfka_dist.losses import LossReport
from dfka_dist.models.target import TargetNet
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.objective import refuse_non_finite


class Dual:
    """The student's side of the game.

    Args:
        engine: drives `target.trunk`, the dual generator, or `target` itself when it is fine-tuned.
    """

    def __init__(
        self, *, engine: Engine, target: TargetNet, tasks: Mapping[str, Task], weights: LossWeights
    ) -> None:
        self.engine = engine
        self.target = target
        self._tasks = tasks
        self._weights = weights

    def learn(self, batch: Labelled, rate: float) -> LossReport:
        """Step towards the teachers' answers to a batch.

        Raises:
            NonFiniteLoss: on every rank, before anything moved.
        """
        self.engine.network.train()
        outputs: dict[str, Tensor] = self.engine(batch.images)
        leaves = {name: value.detach().requires_grad_() for name, value in outputs.items()}
        report = self._report(leaves if self._whole else self.target.judge(leaves), batch)
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        gradients = [
            leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            for leaf in leaves.values()
        ]
        self.engine.step(list(outputs.values()), gradients, rate)
        return report

    @property
    def _whole(self) -> bool:
        return self.engine.network is self.target

    def _report(self, said: Mapping[str, Tensor], batch: Labelled) -> LossReport:
        def distill() -> Tensor:
            kept = self.target.kept
            return torch.stack(
                [losses.distill(said[n], batch.logits[n][:, kept[n]], self._tasks[n]) for n in said]
            ).sum()

        return losses.weigh(self._weights, {"distill": distill})
