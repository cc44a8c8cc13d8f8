"""The servers of a run, in a placement group of their own: they outlive restarts of the trainer."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import ray
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dfka_dist.config import ServingSpec, TeacherSpec
from dfka_dist.errors import RunFailed
from dfka_dist.models.sources import Weights
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.placement import PlacementPlan
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.server import TeacherServer, WeightStore
from dfka_dist.teachers.shards import Handle, Shards

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a figure about the servers is waited for."""


def beside_the_driver() -> dict[str, Any]:
    """Options of an actor that is lost with this process's node and no other."""
    return {"label_selector": {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}}


def free_now() -> dict[str, float]:
    """CPUs and GPUs of the whole cluster that nobody has."""
    free = ray.available_resources()
    return {kind: free.get(kind, 0.0) for kind in ("CPU", "GPU") if kind == "CPU" or kind in free}


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
    ) -> None:
        self._specs, self._weights, self._plan, self._serving = specs, weights, plan, serving
        self._name, self._wire = f"dfka-{run}-{uuid.uuid4().hex[:8]}", serving.wire
        self._group: PlacementGroup | None = None
        self._servers: dict[str, list[Handle]] = {spec.name: [] for spec in specs}
        self._store: Handle | None = None
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
        """What all servers that live and answer within a moment have computed since they began."""
        asked = [h.cpu_seconds.remote() for own in self._servers.values() for h in own]
        if not asked:
            return 0.0
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
        seconds = 0.0
        for reference in done:
            with suppress(RayActorError):  # it died; the result of the run does not depend on it
                seconds += ray.get(reference)
        return seconds

    @property
    def servers(self) -> Mapping[str, Sequence[Handle]]:
        """Per teacher the actor handles of its replicas, shard after shard."""
        return self._servers

    @property
    def replicas(self) -> Mapping[str, Sequence[Shards]]:
        """The same, each replica for itself."""
        found = {}
        for teacher, handles in self._servers.items():
            seats = [seat for seat in self._plan.seats if seat.teacher == teacher]
            seated = zip(seats, handles, strict=False)  # nobody is, before the start
            replicas = [list(own) for _, own in groupby(seated, key=lambda pair: pair[0].replica)]
            found[teacher] = [
                Shards(tuple(h for _, h in own), tuple(seat.stages.start for seat, _ in own))
                for own in replicas
            ]
        return found

    def close(self) -> None:
        """Stop the servers and give the resources back."""
        for handle in [handle for own in self._servers.values() for handle in own]:
            ray.kill(handle)
        if self._store is not None:
            ray.kill(self._store)
            self._store = None
        self._servers = {name: [] for name in self._servers}
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _reserved(self) -> PlacementGroup:
        bundles = [dict(bundle) for bundle in self._plan.bundles]
        group = placement_group(
            bundles,
            strategy=self._plan.strategy,
            name=self._name,
            bundle_label_selector=[dict(self._plan.server_labels) for _ in bundles],
        )
        if not group.wait(self._serving.start_timeout):
            remove_placement_group(group)
            raise RunFailed(
                f"the cluster did not give {bundles} within {self._serving.start_timeout:g} s; "
                f"free now: {free_now()}; "
                "ask for less under serving, or wait longer with serving.start_timeout"
            )
        return group

    def _start(self) -> None:
        server = ray.remote(TeacherServer)
        self._store = (
            ray.remote(WeightStore)
            .options(
                name=f"{self._name}-weights", num_cpus=0, max_restarts=0, **beside_the_driver()
            )
            .remote(dict(self._weights))
        )
        specs = {spec.name: spec for spec in self._specs}
        for seat in self._plan.seats:
            handle = server.options(
                name=f"{self._name}-{seat.teacher}-{seat.replica}-{seat.shard}",
                num_cpus=self._plan.server["CPU"],
                num_gpus=self._plan.server.get("GPU", 0),
                max_restarts=self._serving.restarts,
                max_task_retries=self._serving.restarts,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, seat.bundle),
            ).remote(
                spec=specs[seat.teacher],
                store=f"{self._name}-weights",
                threads=self._serving.threads,
                cache_bytes=self._serving.cache_megabytes * 2**20,
                stages=seat.stages,
                compiled=self._serving.compile,
                replica=seat.replica,
                shard=seat.shard,
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
                f"the teachers were not loaded within {self._serving.start_timeout:g} s "
                "(serving.start_timeout)"
            ) from None
        except RayActorError as error:
            # Ray tells the whole story of a server, and what went wrong in it last.
            reason = str(error).strip().splitlines()[-1].strip()
            raise RunFailed(f"a teacher's server did not start: {reason}") from error
        return ServedTeachers(
            descriptions,
            self.replicas,
            in_flight=self._serving.in_flight,
            wire_precision=self._wire,
            timeout=self._serving.timeout,
        )
