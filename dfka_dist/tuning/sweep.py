"""All trials of a sweep: pilots first, then those that Ray Tune draws and stops."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import optuna
import ray.util
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from dfka_dist.errors import Interrupted, RunFailed
from dfka_dist.launch import PREFIX
from dfka_dist.training.probe import Contest, Heard
from dfka_dist.tuning.leaving import Leavers
from dfka_dist.tuning.listening import FAILURES, MARGIN, Listener, Switch
from dfka_dist.tuning.ranking import Jury
from dfka_dist.tuning.records import TrialRecord
from dfka_dist.tuning.sampling import sampled
from dfka_dist.tuning.showing import Showing
from dfka_dist.tuning.space import Point
from dfka_dist.tuning.trial import METRIC, POINT, Entry, Ring, Trial

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Of Tune: it is not to write logs of its own, and signals are ours."""


class Sweep:
    """Trials until the budget is spent.

    Args:
        stopping: whether the user asked for the end.
        showing: what the user sees.
    """

    def __init__(
        self, ring: Ring, jury: Jury, stopping: Callable[[], bool], showing: Showing
    ) -> None:
        self._ring, self._space, self._spec = ring, ring.space, ring.space.spec
        self._jury, self._stopping, self._showing = jury, stopping, showing
        self._forgive()
        showing.known(ring.folder.records())
        self._began = time.monotonic() - ring.folder.elapsed
        os.environ.update(QUIET)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail are recorded

    def run(self) -> list[TrialRecord]:
        """All trials, those of earlier starts among them.

        Raises:
            Interrupted: it was asked for; what is over is kept.
            RunFailed: no pilot came to its end, trials fail that are not at fault, or there is a
                newer start of the sweep.
        """
        contest = Contest(self._piloted())
        if self._spec.algorithm == "grid":
            self._try_all(self._space.grid(), contest)
        else:
            self._try_drawn(contest)
        self._end_if_told()
        return self._ring.folder.records()

    def _try_drawn(self, contest: Contest) -> None:
        while not self._is_over():
            known = self._ring.folder.records()
            missing = -1 if self._spec.most is None else max(0, self._spec.most - len(known))
            if not missing:
                break
            self._fit(contest, {}, missing, sampled(self._space, known, self._ring.concurrent))

    def _piloted(self) -> Heard:
        """Run the pilots that are missing; the probe set that all of them make."""
        folder = self._ring.folder
        missing = self._untried(self._space.pilots())
        if missing and not self._is_over():
            self._showing.message(f"{len(missing)} pilots, on whose images all are compared")
            self._try_all(missing, Contest())
        pilots = [r for r in folder.records() if r.pilot and r.status == "finished"]
        self._end_if_told()
        if not pilots:
            whys = ", ".join(record.why or record.status for record in folder.records())
            whys = whys or "search.seconds were over before"
            raise RunFailed(f"no pilot of the sweep came to its end: {whys[:200]}")
        probe = self._jury.probe(pilots)
        for pilot in pilots:
            if pilot.judges != len(pilots):
                judged = pilot.judged(self._jury.judge(pilot, probe), len(pilots))
                folder.write(judged)
                self._showing.known([judged])
        return probe

    def _forgive(self) -> None:
        """Let points be tried again that may not be at fault: pilots of which none finished, and
        the failures that ended an earlier start."""
        records = self._ring.folder.records()
        pilots = [record for record in records if record.pilot]
        last = list(itertools.takewhile(lambda each: each.status == "failed", reversed(records)))
        if not any(pilot.status == "finished" for pilot in pilots):
            self._ring.folder.forget(pilots)
        elif len(last) >= FAILURES:
            self._ring.folder.forget(last)

    def _try_all(self, points: list[Point], contest: Contest) -> None:
        while (missing := self._untried(points)) and not self._is_over():
            self._fit(contest, {POINT: tune.grid_search(missing)}, 1, None)

    def _untried(self, points: list[Point]) -> list[Point]:
        tried = [record.point for record in self._ring.folder.records()]
        return [point for point in points if point not in tried]

    def _fit(
        self, contest: Contest, space: dict[str, Any], samples: int, search: OptunaSearch | None
    ) -> None:
        """Run trials until there are `samples` of the space, or it is time; -1 for no end.

        Those that end for what is not their own are no result, and missing afterwards.

        Raises:
            Interrupted, RunFailed: see `run`.
        """
        ring = self._ring
        pilots, before = contest.probe is None, len(ring.folder.records())
        patience = ring.space.trial(ring.space.own).training.checkpoint.grace + MARGIN
        leavers = Leavers(ring.folder, patience)
        listener = Listener(
            ring.folder,
            self._began,
            self._stopping,
            self._showing,
            pilots=pilots,
            at_once=ring.concurrent,
            leavers=leavers,
        )
        entry = Entry(ring, contest)
        with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
            tune.Tuner(
                tune.with_resources(tune.with_parameters(Trial, entry=entry), _beside_the_driver()),
                param_space=space,
                tune_config=tune.TuneConfig(
                    metric=METRIC,
                    mode="max",
                    search_alg=search,
                    scheduler=FIFOScheduler() if pilots else self._scheduler(),
                    num_samples=samples,
                    max_concurrent_trials=ring.concurrent,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=place,
                    callbacks=[listener],
                    stop=Switch(self._is_over, listener, patience),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
            leavers.end()
        self._end_if_told()
        ring.folder.refuse_another_start()
        if listener.fatal is not None:
            raise RunFailed(f"{listener.fatal}; --resume goes on")
        if len(ring.folder.records()) == before and not self._is_over():
            raise RunFailed(f"no trial came to a result: {listener.passed}; --resume goes on")

    def _end_if_told(self) -> None:
        if self._stopping():
            what = "the sweep was stopped; --resume goes on, with the trials that are over"
            raise Interrupted(what)

    def _is_over(self) -> bool:
        seconds = self._spec.seconds
        spent = seconds is not None and time.monotonic() - self._began > seconds
        return spent or self._stopping()

    def _scheduler(self) -> TrialScheduler:
        if self._spec.scheduler == "none":
            return FIFOScheduler()
        factor = self._spec.reduction
        return AsyncHyperBandScheduler(grace_period=1, max_t=10_000, reduction_factor=factor)


def _beside_the_driver() -> tune.PlacementGroupFactory:
    """What a trial takes: nothing but a place on this machine, where its results go."""
    here = f"node:{ray.util.get_node_ip_address()}"
    return tune.PlacementGroupFactory([{"CPU": 0, here: 0.001}])
