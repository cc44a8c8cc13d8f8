"""How much every key of a space matters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from dfka_dist.tuning.records import TrialRecord
from dfka_dist.tuning.sampling import distributions, holds
from dfka_dist.tuning.space import Space

FEWEST = 5
"""Trials that say something."""


def importances(space: Space, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Per key its share of what trials differ by (PED-ANOVA, Watanabe et al. 2023, as Optuna has
    it), at the last moment that all of them have reached; empty where there are too few."""
    own = distributions(space)
    told = [
        record
        for record in records
        if not record.pilot
        and record.status != "failed"
        and record.agreements
        and holds(own, record.point)
    ]
    if len(told) < FEWEST:
        return {}
    moment = min(len(record.agreements) for record in told) - 1
    study = optuna.create_study(direction="maximize")
    for record in told:
        study.add_trial(
            optuna.trial.create_trial(
                params=record.point, distributions=own, value=record.agreements[moment]
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(evaluate_on_local=False)
        found: dict[str, float] = get_param_importances(study, evaluator=evaluator)
    return found
