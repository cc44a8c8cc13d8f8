"""A Ray cluster of several nodes, a storage, and jobs that run there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from network import BRIDGE_ADDRESS, REPOSITORY, Node, network
from objectstore import SECRET, ObjectStore

PORT = 6379
PATIENCE = 240.0
"""Seconds for anything that must happen."""
SHORT = {
    "training.steps": 24,
    "training.rehearsal_steps": 8,
    "training.fine_tune_steps": 4,
    "training.branch_steps": 0,
    "training.batch_size": 16,
    "training.workers": 2,
    "training.threads": 1,
    "training.worker_cpus": 2,
    "training.probe_images": 64,
    "training.memory_megabytes": 4,
    "training.candidates": 2,
    "training.checkpoint.every": 6,
    "training.report_every": 1,
    "serving.cpus": 0.5,
}
"""What makes the digits preset a run of half a minute, by two workers, each on a node of its own:
both teachers and one of them on one node, the other on the other."""
SOON_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""When a node that is not heard of counts as lost."""
OURS = ("ray::TeacherServer", "ray::_Conductor", "RayTrainWorker", "amalgamate.py", "tune.py")
"""What processes of a run are called."""
LEFT = Path(__file__).with_name("left.py")


def wait_for(happens: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Until it does.

    Raises:
        AssertionError: it does not.
    """
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    code: int
    out: str
    err: str


@dataclass
class Job:
    """A run that goes on.

    Args:
        node: of its driver.
        name: of the run.
    """

    node: Node
    name: str
    process: subprocess.Popen[str]
    folder: str

    def signal(self, number: signal.Signals) -> None:
        """Send it to the driver."""
        for driver in psutil.Process(self.process.pid).children():  # of nsenter
            driver.send_signal(number)

    def records(self) -> list[dict[str, Any]]:
        """That are whole by now."""
        place = self.node.path(f"{self.folder}/metrics.jsonl")
        lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def steps(self) -> list[int]:
        """That it has told of."""
        return [record["global_step"] for record in self.records()]

    def loss(self) -> float:
        """What distillation lost last."""
        return float(self.records()[-1]["losses"]["distill"])

    def wait_for_step(self, step: int) -> None:
        """Until it tells of a step."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return any(told >= step for told in self.steps())

        wait_for(is_there, f"step {step} of {self.name}")

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end:\n{self.log()[-3000:]}") from None
        return Ended(self.process.returncode, out, err)

    def network(self) -> str:
        """What came out, as a digest."""
        place = self.node.path(f"{self.folder}/target_net/model.safetensors")
        return hashlib.sha256(place.read_bytes()).hexdigest()

    def log(self) -> str:
        """Of the driver."""
        return self.node.path(f"{self.folder}/run.log").read_text(encoding="utf-8")


@dataclass
class Cluster:
    """Three nodes: a head without CPUs, and two with three each."""

    nodes: list[Node]
    store: ObjectStore
    env: dict[str, str]
    jobs: list[Job] = field(default_factory=list)

    @property
    def head(self) -> Node:
        """Where drivers begin."""
        return self.nodes[0]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.head.address}:{PORT}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head.address}:8265"

    def raise_node(self, node: Node) -> None:
        """Start Ray on a node, and wait for it."""
        head = node is self.head
        where = ["--head", f"--port={PORT}"] if head else [f"--address={self.address}"]
        options = {
            "node-ip-address": node.address,
            "num-cpus": 0 if head else 3,
            "object-store-memory": 300_000_000,
            "include-dashboard": "true" if head else None,
            "dashboard-host": node.address if head else None,
        }
        given = [f"--{key}={value}" for key, value in options.items() if value is not None]
        log = node.path("/tmp/ray.log").open("w")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, *given]
        node.start(*command, env=self.env, stdout=log, stderr=log)
        ready = node.path("/tmp/ray.log")
        wait_for(lambda: "Ray runtime started" in ready.read_text(), f"Ray on {node.address}", 90)

    def settings(self, name: str, sets: Mapping[str, Any]) -> list[str]:
        """Arguments that make the digits preset a short run here; what is None is left out."""
        values = SHORT | {
            "run.name": name,
            "run.address": self.address,
            "training.checkpoint.storage": f"s3://bucket/runs?{self.store.options}",
        }
        given = {key: value for key, value in (values | sets).items() if value is not None}
        return [a for key, value in given.items() for a in ("--set", f"{key}={value}")]

    def start(
        self, name: str, *arguments: str, node: Node | None = None, sets: Mapping[str, Any] = {}
    ) -> Job:
        """Start a run of the digits preset."""
        place, folder = node or self.head, f"/root/{name}"
        process = place.start(
            sys.executable,
            "jobs/amalgamate.py",
            "--config=jobs/presets/digits.yaml",
            f"--output={folder}",
            *self.settings(name, sets),
            *arguments,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        job = Job(place, name, process, folder)
        self.jobs.append(job)
        return job

    def processes(self, title: str) -> list[psutil.Process]:
        """Of a name, on all nodes, in the order of their start."""
        found = [p for node in self.nodes for p in self.on(node, title)]
        return sorted(found, key=lambda process: process.create_time())

    @property
    def near(self) -> Node:
        """Where the teachers of the run that goes on are, and one of its workers."""
        return next(node for node in self.nodes if self.on(node, "ray::TeacherServer"))

    @property
    def far(self) -> Node:
        """Where the other worker is, and nothing else."""
        (far,) = [node for node in self.nodes[1:] if node is not self.near]
        assert self.on(far, "RayTrainWorker")
        return far

    def on(self, node: Node, title: str) -> list[psutil.Process]:
        """Processes of a name on a node."""
        return [process for process in node.processes() if title in _title(process)]

    def left(self, *, killed: bool = False) -> list[str]:
        """What runs have left on the nodes: processes, actors, placement groups, and files in
        /dev/shm.

        Args:
            killed: processes were killed, and so their files are in /tmp still.
        """
        wait_for(lambda: not any(map(self.processes, OURS)), "processes to end", 30)
        answer = subprocess.run(
            self.head.command(sys.executable, LEFT, self.address),
            env=self.env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: list[str] = json.loads(answer.stdout.splitlines()[-1])
        for node in self.nodes:
            own = list(node.path("/dev/shm").iterdir())
            own += [] if killed else node.path("/tmp").glob("dfka-*")
            found += [place.name for place in own if not place.name.startswith("plasma")]
        return found

    def sweep(self) -> None:
        """Remove what processes that were killed have left in /tmp."""
        for place in [p for node in self.nodes for p in node.path("/tmp").glob("dfka-*")]:
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A new one."""
    with network(3) as nodes:
        store = ObjectStore(BRIDGE_ADDRESS)
        env = os.environ | SOON_DEAD | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests' / 'cluster'}",
        }  # fmt: skip
        made = Cluster(nodes, store, env)
        made.raise_node(made.head)
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(made.raise_node, nodes[1:]))
        yield made
        store.stop()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
