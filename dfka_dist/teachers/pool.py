"""The servers of a run, in a placement group of their own, so that they outlive restarts of the trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dfka_dist.config import Precision, ServingSpec, TeacherSpec
from dfka_dist.errors import RunFailed
from dfka_dist.models.sources import Weights
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.placement import PlacementPlan
from dfka_dist.teachers.served import Handle, ServedTeachers
from dfka_dist.teachers.server import TeacherServer

log = logging.getLogger(__name__)


class TeacherPool:
    """Starts every server of a plan; a context manager that leaves nothing behind.

    Args:
        specs: the teachers; `weights` by name, read once by the caller and sent to the servers.
        run: name of the run, which actors and placement group carry.
    """

    def __init__(
        self,
        specs: Sequence[TeacherSpec],
        weights: Mapping[str, Weights],
        plan: PlacementPlan,
        serving: ServingSpec,
        run: str,
        wire_precision: Precision = "fp32",
    ) -> None:
        self._specs, self._weights, self._plan, self._serving = specs, weights, plan, serving
        self._run, self._wire = run, wire_precision
        self._group: PlacementGroup | None = None
        self._servers: dict[str, list[Handle]] = {spec.name: [] for spec in specs}
        self._sent: dict[str, Any] = {}
        self._teachers: ServedTeachers | None = None

    def __enter__(self) -> Self:
        """Wait for the resources and for every teacher to be loaded.

        Raises:
            RunFailed: they do not come in time.
        """
        try:
            self._group = self._reserved()
            self._start()
            self._teachers = self._described()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def teachers(self) -> ServedTeachers:
        """A client; send it where it is needed."""
        assert self._teachers is not None
        return self._teachers

    @property
    def descriptions(self) -> Mapping[str, TeacherDescription]:
        """By name, in the order of the configuration."""
        return self.teachers.descriptions

    def cpu_seconds(self) -> float:
        """What all servers together have computed so far."""
        return sum(
            ray.get(
                [handle.cpu_seconds.remote() for own in self._servers.values() for handle in own]
            )
        )

    @property
    def servers(self) -> Mapping[str, Sequence[Handle]]:
        """Per teacher the actor handles of its replicas."""
        return self._servers

    def close(self) -> None:
        """Stop the servers and give the resources back."""
        for handle in [handle for own in self._servers.values() for handle in own]:
            ray.kill(handle)
        self._servers = {name: [] for name in self._servers}
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _reserved(self) -> PlacementGroup:
        bundles = [dict(bundle) for bundle in self._plan.bundles]
        group = placement_group(bundles, strategy=self._plan.strategy, name=f"dfka-{self._run}")
        if not group.wait(self._serving.start_timeout):
            remove_placement_group(group)
            free = {
                kind: amount
                for kind, amount in ray.available_resources().items()
                if kind in ("CPU", "GPU")
            }
            raise RunFailed(
                f"the cluster did not give {bundles} within {self._serving.start_timeout:g} s; free now: {free}; "
                "ask for less under serving, or wait longer with serving.start_timeout"
            )
        return group

    def _start(self) -> None:
        server = ray.remote(TeacherServer)
        # Kept, for a server that is started again fetches them again.
        self._sent = {name: ray.put(weights) for name, weights in self._weights.items()}
        specs = {spec.name: spec for spec in self._specs}
        for seat in self._plan.seats:
            resources = self._plan.bundles[seat.bundle]
            handle = server.options(
                name=f"dfka-{self._run}-{seat.teacher}-{seat.replica}",
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                max_restarts=self._serving.restarts,
                max_task_retries=self._serving.restarts,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, seat.bundle),
            ).remote(
                spec=specs[seat.teacher],
                weights=[self._sent[seat.teacher]],
                threads=self._serving.threads,
                cache_bytes=self._serving.cache_megabytes * 2**20,
                wire_precision=self._wire,
            )
            self._servers[seat.teacher].append(handle)

    def _described(self) -> ServedTeachers:
        first = {name: own[0].describe.remote() for name, own in self._servers.items()}
        everyone: list[Any] = [
            handle.pid.remote() for own in self._servers.values() for handle in own
        ]
        try:
            ray.get(everyone, timeout=self._serving.start_timeout)
            descriptions = {name: ray.get(reference) for name, reference in first.items()}
        except GetTimeoutError:
            raise RunFailed(
                f"the teachers were not loaded within {self._serving.start_timeout:g} s (serving.start_timeout)"
            ) from None
        except RayActorError as error:
            raise RunFailed(f"a teacher's server did not start: {error}") from error
        return ServedTeachers(
            descriptions,
            self._servers,
            in_flight=self._serving.in_flight,
            wire_precision=self._wire,
        )
