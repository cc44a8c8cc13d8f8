"""How many workers of a range there is room for, beside all that others hold.

Ray Train's own count is of what nodes have in all: where servers of teachers take a part of them,
it asks for more workers than there is room for, waits for these in vain, and asks again.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray._private import state as ray_state
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

PAUSE = 0.5
"""Seconds from one look at what is free to the next."""


class RoomyTrainer(TorchTrainer):  # type: ignore[misc]
    """A trainer whose number of workers, if it is a range, follows what is free; it has no cleaner
    of placement groups but one that it is given."""

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()
        return [each for each in made if type(each) is not PlacementGroupCleanerCallback]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            given["scaling_policy"] = FreeRoom(self.scaling_config)
        return super()._initialize_and_run_controller(**given)


class FreeRoom(ElasticScalingPolicy):  # type: ignore[misc]
    """Counts what is free, and what the workers hold that there are."""

    _own = 0
    """Workers that there are, as far as is known."""

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Those that there were are let go for others; see `ControllerCallback`."""
        self._own = 0

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """See `ScalingPolicy`."""
        self._own = worker_group_state.num_workers
        return super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )

    def make_decision_for_non_running_worker_group(self) -> Any:
        """See `ScalingPolicy`; the controller asks again at once where there is no room."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(PAUSE)
        return decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        known: int = super()._count_possible_workers(reserved_resources)
        return min(known, self._own + self._free())

    def _free(self) -> int:
        needed = self.scaling_config._resources_per_worker_not_none
        labels = (self.scaling_config.label_selector or {}).items()
        allowed = {n["NodeID"] for n in ray.nodes() if n["Alive"] and labels <= n["Labels"].items()}
        return sum(
            fitting(free, needed)
            for node, free in ray_state.available_resources_per_node().items()
            if node in allowed
        )


def fitting(free: dict[str, float], needed: dict[str, float]) -> int:
    """Workers that fit into what is free on a node."""
    counts = [int(free.get(kind, 0) / amount + 1e-6) for kind, amount in needed.items() if amount]
    return min(counts, default=0)
