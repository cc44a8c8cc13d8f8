"""Who is best, without data: targets of all trials on a probe set of images of all trials.

With test data their true scores stand beside, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfka_dist.config import RunConfig
from dfka_dist.evaluation import spearman
from dfka_dist.models.target import TargetNet
from dfka_dist.scoring import Scorer
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.micro import in_parts
from dfka_dist.training.panel import Panel
from dfka_dist.training.probe import MOMENTS, Heard, ProbeSet, unpacked
from dfka_dist.tuning.records import Folder, TrialRecord

SCORES = ("accuracy", "mAP")


@dataclass(frozen=True)
class Standing:
    """One trial at the end of a sweep."""

    record: TrialRecord
    agreement: float | None = None
    """On the probe set of all finished trials; None of a trial that did not finish."""
    score: dict[str, float | None] | None = None
    """True accuracy and mAP, where no data set has all labels the mean of the teachers' own; None
    without test data."""


class Jury:
    """Judges finished trials.

    Args:
        config: the run; `teachers` are its own, on a wire that rounds nothing.
    """

    def __init__(
        self, config: RunConfig, teachers: Teachers, folder: Folder, scorer: Scorer
    ) -> None:
        self._config, self._folder, self._scorer = config, folder, scorer
        self._teachers = in_parts(teachers, config.training.micro_batch)

    def probe(self, records: Sequence[TrialRecord]) -> Heard:
        """Equal parts of what finished trials have synthesized, and what the teachers say of it."""
        probe = self._empty()
        count = max(1, self._config.training.probe_images // len(records) // MOMENTS)
        for record in records:
            images, homes = self._folder.share(record)
            parts = zip(images.chunk(MOMENTS), homes.chunk(MOMENTS), strict=True)
            for own, of in parts:
                probe.add(unpacked(own[:count]), of[:count])
        return probe.heard()

    def judge(self, record: TrialRecord, heard: Heard) -> float:
        """The agreement of a finished trial."""
        probe = self._empty()
        probe.give(heard)
        return self._judge(record, probe)

    def compare(
        self, strangers: Sequence[TrialRecord], target: TargetNet
    ) -> dict[str, float | None]:
        """Agreement and true scores of a target, on images of trials that it has nothing to do
        with."""
        probe = self._empty()
        probe.give(self.probe(strangers))
        agreement = float(probe.judge(target)["agreement"])
        return {"agreement": agreement, **(self._score(target) or {})}

    def rank(self, records: Sequence[TrialRecord]) -> list[Standing]:
        """All trials: those that finished first, the best of them first."""
        finished = [record for record in records if record.status == "finished"]
        others = [Standing(record) for record in records if record.status != "finished"]
        probe = self._empty()
        probe.give(self.probe(finished))
        standings = [
            Standing(record, self._judge(record, probe), self._score(self._target(record)))
            for record in finished
        ]
        return [*sorted(standings, key=lambda each: each.agreement or 0.0, reverse=True), *others]

    def _empty(self) -> ProbeSet:
        columns = range(self._config.training.batch_size)
        return ProbeSet(Panel(self._config, self._teachers, columns, "fp32"))

    def _judge(self, record: TrialRecord, probe: ProbeSet) -> float:
        return float(probe.judge(self._target(record))["agreement"])

    def _target(self, record: TrialRecord) -> TargetNet:
        backbone = record.point.get("target.backbone", self._config.target.backbone)
        named = [*(teacher.source for teacher in self._config.teachers), backbone]
        return self._folder.target(record, [source.partition(":")[0] for source in named])

    def _score(self, target: TargetNet) -> dict[str, float | None] | None:
        evaluation = self._scorer.score(target)
        if evaluation is None:
            return None
        whole = [evaluation["target"]] if evaluation["target"] else None
        rows = whole or [own["target"] for own in evaluation["per_teacher"].values()]
        return {key: _mean([row[key] for row in rows]) for key in SCORES}


def correlations(standings: Sequence[Standing]) -> dict[str, float]:
    """Spearman's of the agreement and each true score, over three finished trials or more."""
    found: dict[str, float] = {}
    for key in SCORES:
        pairs = [
            (each.agreement, each.score[key])
            for each in standings
            if each.agreement is not None and each.score is not None and each.score[key] is not None
        ]
        if len(pairs) >= 3:
            found[key] = spearman(*zip(*pairs, strict=True))
    return found


def row(standing: Standing, rank: int) -> dict[str, Any]:
    """A line of `trials.parquet`."""
    record = standing.record
    return {
        "rank": rank if standing.agreement is not None else None,
        "trial": record.number,
        "name": record.name,
        "status": record.status,
        "pilot": record.pilot,
        **record.point,
        "agreement": standing.agreement,
        **{key: (standing.score or {}).get(key) for key in SCORES},
        "moments": record.agreements,
        "seconds": record.seconds,
        "ended": record.ended,
        "why": record.why,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
