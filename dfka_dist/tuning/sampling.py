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
from dfka_dist.tuning.space import Point, Space
from dfka_dist.tuning.trial import METRIC

STARTED = 5
"""Points that are known before the first that is not drawn at random."""


def sampled(space: Space, seed: int, known: Sequence[TrialRecord]) -> OptunaSearch:
    """Draws points; it knows what earlier trials have found.

    Args:
        seed: of the run; a sweep that goes on does not draw the same points again.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = distributions(space)
    told = [(each.point, each.agreement) for each in known if holds(own, each.point)]
    told = [(point, agreement) for point, agreement in told if agreement is not None]
    return OptunaSearch(
        space=own,
        metric=METRIC,
        mode="max",
        sampler=(
            optuna.samplers.RandomSampler(seed + len(known))
            if space.spec.algorithm == "random"
            else optuna.samplers.TPESampler(n_startup_trials=STARTED, seed=seed + len(known))
        ),
        points_to_evaluate=[point for point, _ in told] or None,
        evaluated_rewards=[reward for _, reward in told] or None,
    )


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna knows it."""
    found: dict[str, BaseDistribution] = {}
    for key, own in space.spec.space.items():
        if own.bounds is None:
            found[key] = CategoricalDistribution(own.choices or [])
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
