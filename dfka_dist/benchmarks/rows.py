"""One row of a table: a whole run in a process of its own, kept when it is done."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dfka_dist.errors import RunFailed

JOB = Path(__file__).resolve().parents[2] / "jobs" / "amalgamate.py"
WATCHED_EVERY = 2.0
"""Seconds between two looks at the memory."""
_KEPT = "row.json"


@dataclass(frozen=True)
class Row:
    """A configuration by what it changes in the one it begins with."""

    name: str
    changes: tuple[str, ...]
    """Each KEY=VALUE, as for `--set`."""
    seed: int = 0

    @property
    def folder(self) -> str:
        """Where the run is left."""
        return f"{self.name.replace(' ', '-')}-{self.seed}"


def is_done(row: Row, config: Path, place: Path) -> bool:
    """Whether the row was run before with the same configuration and changes."""
    return _kept(place / row.folder, _identity(row, config)) is not None


def run(row: Row, config: Path, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The result of a row's run, with `peak_bytes`; from its folder if the run was done before.

    A row whose configuration or changes are others than those of the kept run is run again.

    Raises:
        RunFailed: the run ended otherwise than well.
    """
    folder = place / row.folder
    identity = _identity(row, config)
    kept = _kept(folder, identity)
    if kept is not None:
        say(f"{row.folder}: done before")
        return kept
    say(f"{row.folder}: running")
    arguments = [a for change in identity[1:] for a in ("--set", change)]
    peak = _watched(
        [sys.executable, JOB, "--config", config, *arguments, "--overwrite", "--output", folder],
        place / f"{row.folder}.log",
    )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["peak_bytes"] = peak
    kept_file = json.dumps({"identity": identity, "result": result})
    (folder / _KEPT).write_text(kept_file, encoding="utf-8")
    return result


def _identity(row: Row, config: Path) -> list[str]:
    return [_sha256(config), *row.changes, f"run.seed={row.seed}"]


def _sha256(config: Path) -> str:
    return hashlib.sha256(config.read_bytes()).hexdigest()


def _kept(folder: Path, identity: Sequence[str]) -> dict[str, Any] | None:
    try:
        kept = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    result: dict[str, Any] | None = kept["result"] if kept["identity"] == list(identity) else None
    return result


def _watched(command: Sequence[str | Path], log: Path) -> int:
    """Run a command to its end; the most memory that it and its children held, in bytes."""
    peak = 0
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as out,
        subprocess.Popen(list(map(str, command)), stdout=out, stderr=out) as process,
    ):
        try:
            while process.poll() is None:
                peak = max(peak, _held(process.pid))
                time.sleep(WATCHED_EVERY)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise RunFailed(f"a row ended with exit code {process.returncode}: {' '.join(last)}")
    return peak


def _held(pid: int) -> int:
    """Proportional set size of a process and all below it: shared pages count once in all."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue  # it ended meanwhile
    except psutil.Error:
        return 0
    return total
