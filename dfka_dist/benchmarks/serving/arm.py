"""One way to run training steps, in a process of its own that does a few whenever it is told to.

`python -m dfka_dist.benchmarks.serving.arm CONFIG WAY THREADS ORDER`; each line it reads is a
number of joint steps, each line it writes the seconds that they took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from dfka_dist import clusters

Way = Literal["local", "served"]
Order = Literal["turns", "at once"]
"""Of the two generators' work (`Aside`)."""
WARMING = 8
"""Steps before the first that count: the memory has something in it, and all is compiled."""


class Arm:
    """The side of whoever tells it; a context manager that ends the process.

    Args:
        config: a whole run as YAML.
        threads: of the trainer's operations.
    """

    def __init__(self, config: Path, way: Way, threads: int, order: Order) -> None:
        self.name = f"{way}, {threads} {'thread' if threads == 1 else 'threads'}, {order}"
        # Where something computes beside, a run's workers do not spin while they wait.
        self._own = clusters.WORKERS if way == "served" or order == "at once" else {}
        self._command = [sys.executable, "-m", __name__, str(config), way, str(threads), order]

    def __enter__(self) -> Arm:
        self._stack = ExitStack()
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | self._own,
        )
        self.steps(WARMING)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._stack.close()

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds a step of so many more, and what else an arm tells.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        self._log.seek(0)
        raise RuntimeError(f"the arm {self.name} ended: {self._log.read()[-2000:]}")


def main() -> None:
    """Run steps as they are asked for."""
    config, way, threads, order = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with _joint(config, way, threads, order) as (joint, teachers):
        done = 0
        _be_as_nice_as_a_worker()
        for line in sys.stdin:
            waited, beside = teachers.waited, teachers.waited_beside
            began = time.perf_counter()
            for _ in range(int(line)):
                joint.step(done)
                done += 1
            joint.settle()
            seconds = (time.perf_counter() - began) / int(line)
            waits = {
                "waited": (teachers.waited - waited) / int(line),
                "helper waited": (teachers.waited_beside - beside) / int(line),
            }
            sys.stdout.write(json.dumps({"seconds": seconds} | waits) + "\n")
            sys.stdout.flush()


@contextmanager
def _joint(path: Path, way: str, threads: int, order: str) -> Iterator[Any]:
    import torch

    from dfka_dist import machine
    from dfka_dist.loading import load
    from dfka_dist.models.sources import initial_weights, read_all_weights
    from dfka_dist.teachers.local import LocalTeachers
    from dfka_dist.teachers.teacher import load_teachers
    from dfka_dist.training.aside import Aside
    from dfka_dist.training.joint import Joint
    from dfka_dist.training.workshop import Workshop

    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    machine.compute_with(threads)
    config = load(path, [])
    specs = config.teachers
    random = all(spec.weights is None for spec in specs)
    weights = initial_weights(specs, 0) if random else read_all_weights(specs)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        stack.callback(torch.distributed.destroy_process_group)
        teachers: Any
        if way == "local":
            teachers = LocalTeachers(load_teachers(specs, weights))
        else:
            teachers = stack.enter_context(_served(config, weights))
        workshop = Workshop(config, teachers, lambda _: None, torch.device("cpu"))
        target = workshop.new_target(workshop.branching.design())
        memory = workshop.new_memory()
        at_once = order == "at once"
        aside = Aside.fitting(workshop.device) if at_once else Aside(helped=False)
        joint = Joint(workshop, workshop.generator_engine(), target, memory, aside)
        yield joint, teachers


@contextmanager
def _served(config: Any, weights: Any) -> Iterator[Any]:
    from dfka_dist.teachers.placement import plan
    from dfka_dist.teachers.pool import TeacherPool

    placement = plan(config, clusters.this_machine(config))
    with (
        clusters.connected(None, placement),
        TeacherPool(config.teachers, weights, placement, config.served, "arm") as pool,
    ):
        yield pool.teachers


def _be_as_nice_as_a_worker() -> None:
    """As the worker of a run, whatever its way: all threads that there are, Ray's too, by so many
    steps. Not before Ray is there, whose workers would add their own."""
    wanted = int(clusters.PRIVATE["RAY_worker_niceness"])
    for thread in psutil.Process().threads():
        behind = os.getpriority(os.PRIO_PROCESS, thread.id)
        os.setpriority(os.PRIO_PROCESS, thread.id, min(19, behind + wanted))


if __name__ == "__main__":
    main()
