"""What a sweep leaves: the best run, a table, a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfka_dist.folders import whole, write_whole
from dfka_dist.loading import dump
from dfka_dist.training.fence import OWNER
from dfka_dist.tuning.keeping import IDENTITY, PAGE, RESULT, budget
from dfka_dist.tuning.picture import write_page
from dfka_dist.tuning.ranking import SCORES, Standing, correlations, row
from dfka_dist.tuning.records import TRIALS, Folder, write_table
from dfka_dist.tuning.showing import shown
from dfka_dist.tuning.space import Space

LEFT = (
    "best.yaml",
    RESULT,
    "trials.parquet",
    PAGE,
    IDENTITY,
    "resolved.yaml",
    "run.log",
    TRIALS,
    OWNER,
)
"""Everything that a sweep leaves in its folder."""
COPIED = (*(name for name in LEFT if name not in (OWNER, PAGE)), PAGE)
"""What of it is copied, with what says that all else is there at the end."""


@dataclass(frozen=True)
class Found:
    """What a sweep has found."""

    standings: Sequence[Standing]
    """The best first."""
    spearman: dict[str, float]
    """Of the agreement and each true score; empty without test data."""

    @property
    def best(self) -> Standing:
        """Without data."""
        return self.standings[0]


def write(folder: Path, space: Space, standings: Sequence[Standing]) -> Found:
    """Write everything, what matters most first; `sweep.html` says that all else is there."""
    found = Found(standings, correlations(standings))
    rows = [row(standing, rank) for rank, standing in enumerate(standings)]
    best = space.run(found.best.record.point)
    name = f"{best.run.name[:55]}-best"
    best = best.model_copy(update={"run": best.run.model_copy(update={"name": name})})
    write_whole(folder / "best.yaml", dump(best))
    said = {
        "best": rows[0],
        "spearman": found.spearman,
        "trials": len(rows),
        "finished": sum(each.agreement is not None for each in standings),
        "seconds": round(Folder(folder).elapsed, 1),
        "budget": budget(space.spec),
    }
    write_whole(folder / RESULT, json.dumps(said, indent=2) + "\n")
    with whole(folder / "trials.parquet") as part:
        write_table(rows, part)
    write_page(folder / PAGE, space, found.standings, found.spearman)
    return found


def lines(found: Found, folder: Path) -> list[str]:
    """The result, and where to look."""
    best = found.best
    point = ", ".join(f"{key} {shown(value)}" for key, value in best.record.point.items())
    return [
        f"best: {point}; agreement {best.agreement:.4f}{_scores(best)}",
        *(f"rank correlation of agreement and {k}: {v:.2f}" for k, v in found.spearman.items()),
        f"run it: python jobs/amalgamate.py --config {folder / 'best.yaml'}",
        f"page:   {folder / 'sweep.html'}",
    ]


def _scores(standing: Standing) -> str:
    known = [(key, (standing.score or {}).get(key)) for key in SCORES]
    return "".join(f", {key} {value:.4f}" for key, value in known if value is not None)
