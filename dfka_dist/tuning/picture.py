"""The page of a sweep: one file that opens offline."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dfka_dist.folders import write_whole
from dfka_dist.report import templates
from dfka_dist.tuning.importance import importances
from dfka_dist.tuning.ranking import SCORES, Standing
from dfka_dist.tuning.showing import shown
from dfka_dist.tuning.space import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE = "#1f6f8b", "#b8c4c9"
NOTES = {
    "Trials over time": "Dark: finished. The line is the best of those so far.",
    "All trials": "A line is a trial, darker the better it agrees; pale ones did not finish. "
    "It is broken where the run's own value is none of an axis.",
    "Importance": "How much every key decides, by PED-ANOVA over the trials after the pilots, at "
    "the last moment that all of them reached.",
}


def write_page(
    path: Path, space: Space, standings: Sequence[Standing], spearman: Mapping[str, float]
) -> None:
    """Write `sweep.html`."""
    figures = {
        "Trials over time": _over_time(standings),
        "All trials": _parallel(space, standings),
        "Importance": _importance(space, standings),
    }
    html = (
        templates()
        .get_template("sweep.html.j2")
        .render(
            name=space.name,
            figures={title: Markup(_svg(each)) for title, each in figures.items() if each},
            notes=NOTES,
            keys=list(space.spec.space),
            standings=standings,
            finished=sum(each.agreement is not None for each in standings),
            scores=[key for key in SCORES if any((s.score or {}).get(key) for s in standings)],
            names={"accuracy": "top-1", "mAP": "mAP"},
            spearman=spearman,
            shown=shown,
            value=value,
        )
    )
    write_whole(path, html)


def value(standing: Standing) -> float | None:
    """A trial's agreement: on all trials' images if it finished, else its last."""
    return standing.record.agreement if standing.agreement is None else standing.agreement


def _over_time(standings: Sequence[Standing]) -> Figure:
    figure, axes = _figure(3.2)
    told = sorted((s for s in standings if value(s) is not None), key=lambda s: s.record.ended)
    best, so_far = -math.inf, []
    for each in told:
        finished = each.agreement is not None
        own = value(each) or 0.0
        axes.scatter(each.record.ended / 60, own, color=INK if finished else PALE, zorder=3)
        best = max(best, own) if finished else best
        so_far.append((each.record.ended / 60, best))
    known = [(x, y) for x, y in so_far if math.isfinite(y)]
    if known:
        axes.step(*zip(*known, strict=True), where="post", color=INK, linewidth=1)
    axes.set(xlabel="minutes", ylabel="agreement")
    return figure


def _parallel(space: Space, standings: Sequence[Standing]) -> Figure:
    """Each trial a line through its values, dark where it is good."""
    figure, axes = _figure(3.6)
    told = [s for s in reversed(standings) if value(s) is not None]
    keys = list(space.spec.space)
    columns = [[_number(space, key, s.record.point[key]) for s in told] for key in keys]
    columns.append([value(s) or 0.0 for s in told])
    scaled = [_scaled(column) for column in columns]
    for index, standing in enumerate(told):
        good = scaled[-1][index]
        color = INK if standing.agreement is not None else PALE
        axes.plot([column[index] for column in scaled], color=color, alpha=0.2 + 0.8 * good)
    axes.set_xticks(range(len(columns)), [*keys, "agreement"])
    axes.set_yticks([])
    for at, column in enumerate(columns):
        known = [each for each in column if math.isfinite(each)]
        ends = ((-0.06, min(known)), (1.03, max(known))) if known else ()
        for height, end in ends:
            text = shown(_back(space, keys[at], end) if at < len(keys) else end)
            axes.text(at, height, text, ha="center", fontsize=8)
    axes.set_ylim(-0.1, 1.1)
    return figure


def _importance(space: Space, standings: Sequence[Standing]) -> Figure | None:
    found = importances(space, [standing.record for standing in standings])
    if not found:
        return None
    figure, axes = _figure(0.8 + 0.35 * len(found))
    names = sorted(found, key=lambda key: found[key])
    axes.barh(names, [found[name] for name in names], color=INK)
    axes.set(xlabel="share of what agreements differ by")
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _number(space: Space, key: str, own: Any) -> float:
    """A value as a place on an axis; NaN for one that has none, as 0 on a logarithmic one."""
    of = space.spec.space[key]
    if of.choices is not None:
        return float(of.choices.index(own)) if own in of.choices else math.nan
    if own is None or (of.log is not None and own <= 0):
        return math.nan
    return math.log(own) if of.log is not None else float(own)


def _back(space: Space, key: str, place: float) -> Any:
    of = space.spec.space[key]
    if of.choices is not None:
        return of.choices[int(place)]
    return math.exp(place) if of.log is not None else place


def _scaled(column: Sequence[float]) -> list[float]:
    known = [each for each in column if math.isfinite(each)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [(each - low) / ((high - low) or 1.0) for each in column]
