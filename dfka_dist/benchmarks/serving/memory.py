"""Measure 6: whether driver, trainer and servers grow while a run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dfka_dist.benchmarks.rows import JOB
from dfka_dist.config import PRESETS
from dfka_dist.errors import RunFailed

FROM, STEPS = 200, 1000
EVERY = 2.0
"""Seconds between two looks."""
NAMES = {"TeacherServer": "server", "TrainWorker": "trainer", "amalgamate.py": "driver"}
"""Processes by what stands in their command line: Ray writes there what an actor is."""

Table = dict[str, Any]


def growth(place: Path, say: Callable[[str], None]) -> Table:
    """Megabytes that each process of a run of 1,000 joint steps holds of its own at steps 200 and
    1,000, and the difference; the memory of images is full before.

    Raises:
        RunFailed: the run ended otherwise than well.
    """
    folder = place / "memory"
    # Steps of an earlier run would be taken for this one's.
    shutil.rmtree(folder, ignore_errors=True)
    sets = {
        "training.steps": STEPS,
        "training.rehearsal_steps": 0,
        "training.branch_steps": 0,
        "training.fine_tune_steps": 0,
        "training.candidates": 1,
        "training.memory_megabytes": 16,
        "evaluations": "{}",
    }
    arguments = [a for key, value in sets.items() for a in ("--set", f"{key}={value}")]
    command = [sys.executable, JOB, "--config", PRESETS / "digits.yaml", *arguments]
    command += ["--overwrite", "--output", folder]
    looks: list[tuple[int, dict[str, float]]] = []
    with (place / "memory.log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        while process.poll() is None:
            looks.append((_step(folder), _held(process.pid)))
            time.sleep(EVERY)
    if process.returncode:
        raise RunFailed(f"the run ended with exit code {process.returncode}: {place}/memory.log")
    first = next(held for step, held in looks if step >= FROM)
    # Behind the last step the target is finished, which takes room of its own.
    before = [held for step, held in looks if FROM <= step < STEPS]
    last = [held for held in before if held.keys() >= first.keys()][-1]
    found = {
        name: {"at 200": round(first[name]), "at 1000": round(last[name])}
        | {"growth": round(last[name] - first[name], 1)}
        for name in sorted(first)
    }
    for name, own in found.items():
        say(f"{name}: {own['growth']} MB more")
    return found


def _step(folder: Path) -> int:
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return int(json.loads(lines[-1])["global_step"]) if lines else 0


def _held(pid: int) -> dict[str, float]:
    """Megabytes that only the process itself holds, by what it is; and what was ever used of Ray's
    object store, which is the raylet's."""
    found: dict[str, float] = {}
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            command = " ".join(process.cmdline())
            if command.partition(" ")[0].endswith("/raylet"):
                found["object store"] = process.memory_info().rss / 2**20
            name = next((short for long, short in NAMES.items() if long in command), None)
            if name is not None:
                key = name if name not in found else f"{name} {process.pid}"
                found[key] = process.memory_full_info().uss / 2**20
    except psutil.Error:
        return found  # one ended meanwhile
    return found
