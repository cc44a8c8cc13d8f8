"""Measure 6: whether driver, trainer and servers grow while a run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
STORE = "object store"

Table = dict[str, Any]
Held = dict[int, tuple[str, float]]
"""By process what it is, and megabytes."""


def growth(place: Path, say: Callable[[str], None]) -> Table:
    """Megabytes that each process of a run of 1,000 joint steps holds of its own at steps 200 and
    1,000, and the difference, of all that are there at both; the memory of images is full before.

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
    looks: list[tuple[int, Held]] = []
    with (place / "memory.log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        while process.poll() is None:
            looks.append((_step(folder), _held(process.pid)))
            time.sleep(EVERY)
    if process.returncode:
        raise RunFailed(f"the run ended with exit code {process.returncode}: {place}/memory.log")
    # Behind the last step the target is finished, which takes room of its own.
    found = grown([held for step, held in looks if FROM <= step < STEPS])
    for name, own in found.items():
        say(f"{name}: {own['growth']} MB more")
    return found


def grown(looks: Sequence[Held]) -> Table:
    """The first look beside the last, process by process."""
    first, last = looks[0], looks[-1]
    found: Table = {}
    for pid in sorted(first.keys() & last.keys(), key=lambda pid: (first[pid][0], pid)):
        (name, before), (_, after) = first[pid], last[pid]
        found[name if name not in found else f"{name} {pid}"] = {
            "at 200": round(before),
            "at 1000": round(after),
            "growth": round(after - before, 1),
        }
    return found


def _step(folder: Path) -> int:
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return int(json.loads(lines[-1])["global_step"]) if lines else 0


def _held(pid: int) -> Held:
    """Megabytes that only the process itself holds, of all; of the raylet all that it holds, for
    what was ever used of Ray's object store is in it."""
    found: Held = {}
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return found  # it ended meanwhile
    for process in family:
        try:
            name = kind(process.cmdline())
            held = process.memory_info().rss if name == STORE else process.memory_full_info().uss
        except psutil.Error:
            continue  # it ended meanwhile
        found[process.pid] = name, held / 2**20
    return found


def kind(command: Sequence[str]) -> str:
    """What a process is, by its command line; of Ray's own the name of its program."""
    line = " ".join(command)
    if command and command[0].endswith("/raylet"):
        return STORE
    for part, name in NAMES.items():
        if part in line:
            return name
    if line.startswith("ray::"):
        return line.removeprefix("ray::").split()[0].partition(".")[0]
    programs = [Path(word).stem for word in command if word.endswith(".py")]
    return programs[0] if programs else Path(command[0]).name if command else "ended"
