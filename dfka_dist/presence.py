"""Whether workers stand, as Ray Train's controller tells, and what is left of one that was killed.

Ray Train tries again for ever where there is no room for its workers, and says so to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import ray
from ray._private import state as ray_state
from ray._raylet import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller import state as states
from ray.util.placement_group import PlacementGroup, remove_placement_group

WITHOUT = (
    states.InitializingState,
    states.SchedulingState,
    states.ReschedulingState,
    states.RestartingState,
    states.ResizingState,
)
"""States of a controller in which no worker computes."""
PATIENCE = 10.0
"""Seconds in which a controller that was killed is dead."""


class Presence(ControllerCallback):  # type: ignore[misc]
    """Goes with the controller, and tells a board whenever there are workers, or none any more.

    Args:
        board: an actor that is a `NoticeBoard`.
    """

    def __init__(self, board: Any) -> None:
        self._board, self._turn = board, 0
        self._told: bool | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """See `ControllerCallback`."""
        self._tell(stands=False)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """See `ControllerCallback`."""
        self._tell(stands=not isinstance(current_state, WITHOUT))

    def _tell(self, *, stands: bool) -> None:
        if stands == self._told:  # one that waits for room comes to the same state again and again
            return
        self._told = stands
        self._turn += 1
        controller = ray.get_runtime_context().get_actor_id()
        self._board.stand.remote(self._turn, stands=stands, controller=controller)


class KnownCleaner(PlacementGroupCleanerCallback):  # type: ignore[misc]
    """Ray Train's own, whose cleaner the board knows: where there is no dashboard that would never
    find out that the controller is dead, and nothing ends it with the run.

    Args:
        board: see `Presence`.
    """

    def __init__(self, board: Any) -> None:
        super().__init__()
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        """See `ControllerCallback`."""
        super().after_controller_start(train_run_context)
        if self._cleaner is not None:
            self._board.clean.remote(self._cleaner)


def clear_away(controller: str, cleaner: Any = None) -> None:
    """Remove the placement groups of a controller that was killed, as soon as it is dead.

    Ray Train's own cleaner asks the dashboard, which need not be there, and knows of no group that
    is still waited for.

    Args:
        controller: its id as an actor.
        cleaner: Ray Train's own, an actor.
    """
    if cleaner is not None:
        ray.kill(cleaner)
    latest = time.monotonic() + PATIENCE
    while ray_state.actors(controller).get("State") != "DEAD" and time.monotonic() < latest:
        time.sleep(0.05)
    _remove_groups({controller})


def clear_orphans(patience: float = 0.0) -> None:
    """Remove the placement groups of all controllers of this job that are dead: who started them
    died and could not.

    Args:
        patience: seconds in which all controllers of this job are to be dead; 0 where some live on.
    """
    job, latest = ray.get_runtime_context().get_job_id(), time.monotonic() + patience
    while True:
        states = [
            (key, actor["State"])
            for key, actor in ray_state.actors().items()
            if actor["ActorClassName"] == TrainController.__name__ and actor["JobID"] == job
        ]
        if all(state == "DEAD" for _, state in states) or time.monotonic() >= latest:
            break
        time.sleep(0.1)
    _remove_groups({key for key, state in states if state == "DEAD"})


def _remove_groups(controllers: Collection[str]) -> None:
    for told in ray_state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(told)
        is_gone = group.state == PlacementGroupTableData.REMOVED
        if group.creator_actor_id.hex() in controllers and not is_gone:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
