"""How far a sweep is: a live table on a terminal, elsewhere a line for every trial."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dfka_dist.tuning.records import TrialRecord

_SHOWN = 20
"""Trials that a table shows: those that run, and the best."""


@dataclass
class _Row:
    point: Mapping[str, Any]
    status: str = "running"
    agreements: list[float] = field(default_factory=list)


class Showing:
    """What the user sees while its context is open."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = sys.stderr if stream is None else stream
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None
        console = Console(file=self._stream)
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str) -> None:
        """Say what the sweep is doing."""
        if self._live is not None:
            self._live.console.print(f"{self._name}: {text}", markup=False, highlight=False)
        else:
            self._stream.write(f"{self._name}: {text}\n")
            self._stream.flush()

    def known(self, records: Sequence[TrialRecord]) -> None:
        """Trials of earlier starts."""
        for each in records:
            self._rows[each.name] = _Row(each.point, each.status, list(each.agreements))

    def begun(self, name: str, point: Mapping[str, Any]) -> None:
        """A trial runs."""
        self._rows[name] = _Row(point)
        self._line(name)

    def judged(self, name: str, agreements: Sequence[float]) -> None:
        """A trial was judged at its moments so far."""
        self._rows[name].agreements = list(agreements)
        if agreements:
            self._line(name)

    def ended(self, record: TrialRecord) -> None:
        """A trial is over."""
        self._rows[record.name] = _Row(record.point, record.status, list(record.agreements))
        self._line(record.name, _why(record))

    def dropped(self, name: str, why: str) -> None:
        """A trial has ended without a result, and may be tried again."""
        self._rows.pop(name, None)
        self.message(f"{name} is no result: {why}")

    def _line(self, name: str, more: str = "") -> None:
        if self._live is None:
            self.message(f"{name} {_line(self._rows[name])}{more}")

    def _table(self) -> Table:
        table = Table(title=self._name)
        keys = list(next(iter(self._rows.values())).point) if self._rows else []
        for title in ("status", *keys, "agreement"):
            table.add_column(title, overflow="fold")
        rows = sorted(self._rows.values(), key=lambda row: (row.status != "running", -_last(row)))
        for row in rows[:_SHOWN]:
            values = [shown(row.point[key]) for key in keys]
            table.add_row(row.status, *values, _moments(row))
        return table


def shown(value: object) -> str:
    """A value of a point."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last(row: _Row) -> float:
    return row.agreements[-1] if row.agreements else 0.0


def _moments(row: _Row) -> str:
    return " ".join(f"{value:.3f}" for value in row.agreements)


def _line(row: _Row) -> str:
    values = ", ".join(f"{key} {shown(value)}" for key, value in row.point.items())
    return "  ".join(filter(None, (row.status, values, _moments(row))))


def _why(record: TrialRecord) -> str:
    return f"  {record.why}" if record.why else ""
