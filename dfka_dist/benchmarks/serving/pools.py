"""A private Ray cluster with a pool of teachers, for what is measured from this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dfka_dist import clusters
from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.loading import parse
from dfka_dist.models.sources import initial_weights
from dfka_dist.teachers.placement import plan
from dfka_dist.teachers.pool import TeacherPool


@contextmanager
def pool_of(specs: Sequence[TeacherSpec], **serving: Any) -> Iterator[TeacherPool]:
    """Teachers with random weights, each with one share of a CPU in a hundred."""
    config = _configuration(specs, serving)
    placement = plan(config, clusters.this_machine(config))
    weights = initial_weights(specs, 0)
    with (
        clusters.connected(None, placement),
        TeacherPool(specs, weights, placement, config.serving, "measured") as pool,
    ):
        yield pool


def _configuration(specs: Sequence[TeacherSpec], serving: dict[str, Any]) -> RunConfig:
    teachers = [spec.model_dump() for spec in specs]
    shares = {"cpus": 0.01, "start_timeout": 300.0}
    return parse({"run": {"name": "x"}, "teachers": teachers, "serving": shares | serving})
