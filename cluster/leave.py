"""python cluster/leave.py SECONDS

What a pod does before it is stopped (`preStop`): tell the run, and wait until the run has kept
itself. On the head that is a SIGTERM to the driver, which makes a checkpoint and ends with exit
code 4; on a worker Ray is told that the node goes, which the driver sees and does the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

JOBS = ("jobs/amalgamate.py", "jobs/tune.py")
AT_WORK = ("ray::TeacherServer", "ray::RayTrainWorker")
"""How Ray calls the processes of servers and workers; what else it starts may stay behind them."""
POLL_SECONDS = 0.5


def drivers(processes: Sequence[Sequence[str]]) -> list[int]:
    """Which command lines are a driver's: Python with a job, and not the shell that started it."""
    return [
        at
        for at, line in enumerate(processes)
        if len(line) > 1 and "python" in line[0] and line[1].endswith(JOBS)
    ]


def own_node(processes: Sequence[Sequence[str]]) -> str | None:
    """The id of the Ray node of this pod, which its raylet was started with."""
    for line in processes:
        if line and line[0].endswith("raylet"):
            for part in line[1:]:
                if part.startswith("--node_id="):
                    return part.partition("=")[2]
    return None


def working(processes: Sequence[Sequence[str]]) -> bool:
    """Whether a server or a worker is alive here."""
    return any(line and line[0].startswith(AT_WORK) for line in processes)


def main(seconds: float) -> None:
    """Tell, and wait for so long at most."""
    latest = time.monotonic() + seconds
    running = _running()
    lines = [line for _, line in running]
    mine = [running[at][0] for at in drivers(lines)]
    for process in mine:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    if mine:
        _wait(lambda: any(process.is_running() for process in mine), latest)
        return
    node, address = own_node(lines), os.environ.get("RAY_ADDRESS")
    if node is None or address is None or not working(lines):
        return
    drain = ["ray", "drain-node", "--address", address, "--node-id", node]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod is stopped"]
    drain += ["--deadline-remaining-seconds", str(int(seconds))]
    with contextlib.suppress(subprocess.TimeoutExpired):  # Ray may have heard it all the same
        subprocess.run(drain, check=False, timeout=20)
    _wait(lambda: working([line for _, line in _running()]), latest)


def _running() -> list[tuple[psutil.Process, list[str]]]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        found.append((process, list(process.info["cmdline"] or [])))
    return found


def _wait(while_so: Callable[[], bool], latest: float) -> None:
    while time.monotonic() < latest and while_so():
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(float(sys.argv[1]))
