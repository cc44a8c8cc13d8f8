"""What a person looks at: the metrics log, the sample sheet, the report and the model card.

Everything is made from plain data (`result.json`, the records of `metrics.jsonl`, `samples.png`),
so that a report can be made again, and is the same again, from the files of a run.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jinja2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfka_dist.curves import depth_curve, loss_curves
from dfka_dist.errors import RunFailed
from dfka_dist.events import EventFile
from dfka_dist.folders import write_whole
from dfka_dist.origin import ONLY_HERE, Origin
from dfka_dist.progress import clock

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""One line of metrics.jsonl: phase, step, steps, global_step, seconds, losses, rates, waits."""

_CELL = 56  # pixels that a sample at least takes; more than 112 only cost space


class MetricsLog:
    """Records to `metrics.jsonl` and to TensorBoard event files in `tensorboard/`.

    Opened on the folder of an earlier run it continues: `records` begins with what is there. A run
    that resumes from a checkpoint goes through steps again, so a record replaces whatever stands at
    or after its `global_step`.

    Args:
        on_warning: told once when records cannot be written.
    """

    def __init__(self, folder: Path, on_warning: Callable[[str], None] = log.warning) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._on_warning = folder / "metrics.jsonl", on_warning
        self._folder = folder / "tensorboard"
        self._events: EventFile | None = None
        self._is_full = False
        self._own: tuple[int, int] | None = None
        self.records: list[dict[str, Any]] = list(_read_records(self._path))
        self._written = len(self.records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._catch_up()
        self._let_go()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it is on disk (JSON) when this returns.

        Where that is full a warning says so, and the record is written with a later one.

        Raises:
            RunFailed: another start of the run writes there by now.
        """
        step = record["global_step"]
        if self.records and step <= self.records[-1]["global_step"]:
            self.records = [each for each in self.records if each["global_step"] < step]
            self._written = min(self._written, len(self.records))
            self._let_go()
        self.records.append(record)
        self._catch_up()

    def _catch_up(self) -> None:
        """Write what is not written yet, as far as that can be done."""
        left = self.records[self._written :]
        if not left:
            return
        try:
            self._append(left)
        except OSError as error:
            self._let_go()
            if not self._is_full:
                self._on_warning(f"{self._path} waits until it can be written: {error.strerror}")
            self._is_full = True
        else:
            self._written, self._is_full = len(self.records), False

    def _append(self, records: Sequence[dict[str, Any]]) -> None:
        self._refuse_another_start()
        if not self._path.exists():  # it is new, or somebody took it away
            self._let_go()
        if self._events is None:  # the file may hold others by now, or half of one
            write_whole(self._path, _lines(self.records))
            self._own = _mark(self._path)
            purge = records[0]["global_step"] if self._folder.exists() else None
            self._events = EventFile(self._folder, purge)
        else:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_lines(records))
            self._own = _mark(self._path)
        for record in records:
            self._events.add(_scalars(record), record["global_step"])

    def _refuse_another_start(self) -> None:
        """One that goes on replaces the file with its first record.

        Some file systems, of object stores, give the same file another number now and then: it is
        another only if it has another length, too.
        """
        if self._own is None or not self._path.exists():
            return
        if all(mine != now for mine, now in zip(self._own, _mark(self._path), strict=True)):
            raise RunFailed(f"another start of this run writes to {self._path}")

    def _let_go(self) -> None:
        """Of the event file; another follows with the next record."""
        if self._events is not None:
            self._events.close()
            self._events = None


def save_samples(images: Tensor, row_labels: Sequence[str], path: Path, *, more: int = 0) -> None:
    """Draw a sheet of images, a row for each label, its name at the left.

    Pixels are shown as they are, not smoothed.

    Args:
        images: (L * R, C, H, W) in [0, 1], R in a row, C is 1 or 3.
        row_labels: the L names.
        path: PNG file to write.
        more: labels that have no row, which a line below says.
    """
    # The object interface: pyplot would keep state for the whole process and ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    per_row = len(images) // len(row_labels)
    grid, cell = _grid(images, per_row)
    margin = 16 + 8 * max(len(_short(name)) for name in row_labels)
    note = 24 if more else 0
    height, width = grid.shape[0] + note, grid.shape[1] + margin
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    figure.figimage(grid, xo=margin, yo=note)
    for row, name in enumerate(row_labels):
        up = 1 - (row + 0.5) * cell / height
        # Labels are other people's words: "$" is no formula here.
        text = figure.text((margin - 8) / width, up, _short(name), ha="right", va="center")
        text.set(fontsize=9, parse_math=False)
    if note:
        figure.text(8 / width, 6 / height, f"and {more} more", fontsize=9)
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.savefig(path, format="png")


def write_report(
    folder: Path,
    result: Mapping[str, Any],
    records: Sequence[Record],
    configuration: str,
    *,
    by_label: bool = True,
) -> None:
    """Write `report.html`, one file that opens without a network.

    Args:
        folder: where it goes, and where `samples.png` may be.
        result: what `result.json` holds.
        records: what `metrics.jsonl` holds.
        configuration: the text of `resolved.yaml`.
        by_label: whether each row of samples is a label's.
    """
    samples = folder / "samples.png"
    page = templates().get_template("report.html.j2")
    html = page.render(
        result=result,
        origin=Origin(result),
        only_here=ONLY_HERE,
        configuration=configuration,
        by_label=by_label,
        samples=base64.b64encode(samples.read_bytes()).decode() if samples.exists() else None,
        curves=loss_curves(records),
        depths=depth_curve(result),
        phases=_phase_rows(result, records),
        largest=max((teacher["parameters"] for teacher in result["teachers"]), default=0),
    )
    write_whole(folder / "report.html", html)


def write_model_card(folder: Path, result: Mapping[str, Any], code: Sequence[str] = ()) -> None:
    """Write `README.md`, the model card that lies beside the weights.

    Args:
        code: modules without which the network cannot be loaded.
    """
    template = templates().get_template("model_card.md.j2")
    card = template.render(
        result=result, origin=Origin(result), only_here=ONLY_HERE, code=list(code)
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read_records(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
            log.warning("%s: line %d is not complete, left out", path.name, number)


def _mark(path: Path) -> tuple[int, int]:
    """Number and length of a file."""
    told = path.stat()
    return told.st_ino, told.st_size


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _scalars(record: Record) -> Iterable[tuple[str, float]]:
    phase = record["phase"]
    for term, value in record["losses"].items():
        yield f"{phase}/{term}", value
    if "images_per_second" in record:
        yield f"{phase}/images_per_second", record["images_per_second"]
    for cause, share in record.get("waits", {}).items():
        yield f"{phase}/waits_{cause}", share


def _grid(images: Tensor, per_row: int) -> tuple[np.ndarray[Any, Any], int]:
    """All images in one picture uint8 (H, W, 3) with thin gaps, and the height of a row."""
    images = images.detach().float().cpu().clamp(0, 1)
    if images.shape[-1] > 2 * _CELL:
        images = functional.interpolate(images, size=(2 * _CELL, 2 * _CELL), mode="area")
    else:
        times = -(-_CELL // images.shape[-1])
        images = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    images = functional.pad(images.expand(-1, 3, -1, -1), (1, 1, 1, 1), value=1.0)
    _, _, high, wide = images.shape
    rows = images.reshape(-1, per_row, 3, high, wide).permute(0, 3, 1, 4, 2)
    return (rows.reshape(-1, per_row * wide, 3) * 255).round().to(torch.uint8).numpy(), high


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


def _phase_rows(result: Mapping[str, Any], records: Sequence[Record]) -> list[dict[str, Any]]:
    """The phases, with how fast they were and what they waited for; last what lay around them."""
    whole = result["seconds"]["wall"]
    rows = []
    for phase in result["phases"]:
        own = [record for record in records if record["phase"] == phase["name"]]
        causes = dict.fromkeys(cause for record in own for cause in record.get("waits", {}))
        waits = {c: _mean([r["waits"][c] for r in own if c in r.get("waits", {})]) for c in causes}
        speeds = [r["images_per_second"] for r in own if "images_per_second" in r]
        speed = _mean(speeds) if speeds else None
        rows.append({**phase, "waits": waits, "images_per_second": speed})
    around = max(whole - sum(row["seconds"] for row in rows), 0.0)
    rows.append({"name": "start, scores and saving", "seconds": around, "waits": {}})
    total = sum(row["seconds"] for row in rows) or 1.0
    return [{**row, "share": row["seconds"] / total} for row in rows]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def templates() -> jinja2.Environment:
    """Pages of this package; what is put in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfka_dist", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": _percent,
        "figure": _figure,
        "clock": clock,
        "markdown": _markdown,
    }
    return environment


def _percent(share: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if share is None else f"{100 * share:.{digits}f} %"


def _figure(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3g}"


def _markdown(text: object) -> str:
    """Text that Markdown shows as it is, in a table too."""
    line = " ".join(str(text).split())
    return re.sub(r"[\\`*|<>\[\]~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
