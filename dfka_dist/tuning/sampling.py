"""Optuna's part of a sweep: points, drawn by what earlier trials have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search.optuna import OptunaSearch

from dfka_dist.tuning.records import TrialRecord
from dfka_dist.tuning.space import Point, Space, unique
from dfka_dist.tuning.trial import METRIC

STARTED = 5
"""Points that are known before the first that is not drawn at random."""


def sampled(space: Space, known: Sequence[TrialRecord], concurrent: int) -> OptunaSearch:
    """Draws points; it knows what earlier trials have found, and draws others than they did.

    Args:
        concurrent: trials that run at once, and are taken for bad while they do.
    """
    own, seed = distributions(space), space.seed + len(known)
    told = [
        (each.point, each.agreement)
        for each in known
        if each.status != "failed" and each.agreement is not None and holds(own, each.point)
    ]
    return OptunaSearch(
        space=own,
        metric=METRIC,
        mode="max",
        sampler=(
            optuna.samplers.RandomSampler(seed)
            if space.spec.algorithm == "random"
            else optuna.samplers.TPESampler(
                n_startup_trials=STARTED, seed=seed, constant_liar=concurrent > 1
            )
        ),
        points_to_evaluate=[point for point, _ in told] or None,
        evaluated_rewards=[reward for _, reward in told] or None,
    )


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna knows it."""
    found: dict[str, BaseDistribution] = {}
    for key, own in space.spec.space.items():
        if own.bounds is None:
            found[key] = CategoricalDistribution(unique(own.choices or []))
            continue
        low, high = own.bounds
        log = own.log is not None
        if space.is_whole(key):
            found[key] = IntDistribution(int(low), int(high), log=log)
        else:
            found[key] = FloatDistribution(low, high, log=log)
    return found


def holds(space: Mapping[str, BaseDistribution], point: Point) -> bool:
    """Whether a point is one of a space; the run's own need not be."""
    return all(_holds(own, point[key]) for key, own in space.items())


def _holds(own: BaseDistribution, value: object) -> bool:
    if isinstance(own, CategoricalDistribution):
        return value in own.choices
    assert isinstance(own, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and own.low <= value <= own.high
