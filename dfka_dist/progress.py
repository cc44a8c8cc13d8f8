"""How far the run is, on a terminal as a live bar and elsewhere as a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

from rich import progress
from rich.console import Console
from rich.table import Column

Record = Mapping[str, Any]
"""One line of metrics.jsonl: phase, step, steps, seconds, losses, images_per_second."""

QUIET = 10.0
"""Seconds of the run between two plain lines of one phase."""

_LIVE_TERMS = 3  # more losses do not fit beside a bar


class Progress:
    """Shows messages and records while its context is open.

    On a terminal there is one live line, and what is over leaves one line behind. Into a file
    or a pipe go plain lines: every message, the first and the last record of a phase, and one about
    every ten seconds of the run between them. Leaving the context, whatever the reason, shows the
    last record and gives the terminal back.
    """

    def __init__(self, stream: TextIO | None = None, name: str = "run") -> None:
        stream = sys.stderr if stream is None else stream
        console = Console(file=stream)
        # Not Console.is_terminal: FORCE_COLOR in a build server must not bring bars into its log.
        live = stream.isatty() and not console.is_dumb_terminal
        self._display: _LiveBar | _PlainLines
        self._display = _LiveBar(console, name) if live else _PlainLines(stream, name)
        self._pace = _Pace()

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.stop()

    def message(self, text: str) -> None:
        """Say what the run is doing while there is nothing to count."""
        self._display.message(text)

    def update(self, record: Record) -> None:
        """Show a record: phase, step of steps, losses, images a second and the time left."""
        self._display.update(record, self._pace.time_left(record))


def clock(seconds: float) -> str:
    """A duration as `4:05` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Pace:
    """The rate of steps since the first record of the phase."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._step = 0
        self._seconds = 0.0

    def time_left(self, record: Record) -> float | None:
        """Seconds to the end of the phase; None until two records of it are known."""
        step, seconds = record["step"], record["seconds"]
        if record["phase"] != self._phase or step < self._step:
            self._phase, self._step, self._seconds = record["phase"], step, seconds
        done = step - self._step
        if done == 0:
            return None
        return float((seconds - self._seconds) / done * (record["steps"] - step))


class _PlainLines:
    """For files and pipes."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._phase: str | None = None
        self._shown = 0.0
        self._pending: str | None = None

    def start(self) -> None:
        """Nothing has to be prepared."""

    def stop(self) -> None:
        """Write what was held back, which after a failure is the last that is known."""
        self._flush()

    def message(self, text: str) -> None:
        self._flush()
        self._write(text)

    def update(self, record: Record, left: float | None) -> None:
        if record["phase"] != self._phase:
            self._flush()
        self._pending = _line(record, left)
        fresh = record["phase"] != self._phase or record["step"] >= record["steps"]
        if fresh or record["seconds"] - self._shown >= QUIET:
            self._phase, self._shown = record["phase"], record["seconds"]
            self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            self._write(self._pending)
            self._pending = None

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a file without room ends no run
            self._stream.write(f"{self._name}: {text}\n")
            self._stream.flush()


class _LiveBar:
    """For terminals."""

    def __init__(self, console: Console, name: str) -> None:
        self._name = name
        self._phase: str | None = None
        self._lasting: str | None = None  # what stays on the screen when something else begins
        tail = Column(no_wrap=True, overflow="ellipsis")
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            # No markup: names and messages may hold square brackets.
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[note]}", markup=False, table_column=tail),
            console=console,
            transient=True,
            # What others print goes above the bar, unless it is on its way to a file.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(name, total=None, note="")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        """Leave the last state on the screen and give cursor and streams back."""
        self._bar.stop()
        self._leave()

    def message(self, text: str) -> None:
        self._leave()
        self._phase, self._lasting = None, text
        self._bar.reset(self._task, total=None, description=f"{self._name}: {text}", note="")

    def update(self, record: Record, left: float | None) -> None:
        if record["phase"] != self._phase:
            self._leave()
            self._phase = record["phase"]
            self._bar.reset(self._task, total=record["steps"])
        self._lasting = _line(record, None)
        self._bar.update(
            self._task,
            completed=record["step"],
            description=f"{self._name}: {record['phase']}",
            note="  ".join(_parts(record, left, _LIVE_TERMS)),
        )

    def _leave(self) -> None:
        if self._lasting is not None:
            line = f"{self._name}: {self._lasting}"
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._lasting = None


def _line(record: Record, left: float | None) -> str:
    return "  ".join([str(record["phase"]), *_parts(record, left, None)])


def _parts(record: Record, left: float | None, terms: int | None) -> list[str]:
    """The words of a record, what matters most first: a narrow terminal cuts the end off."""
    parts = [f"{record['step']}/{record['steps']}"]
    if left:
        parts.append(f"{clock(left)} left")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:.0f} images/s")
    parts += [f"{term} {value:.3g}" for term, value in list(record["losses"].items())[:terms]]
    return parts
