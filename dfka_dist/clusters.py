"""Ray itself: a cluster that exists, or a private one on this machine, and what nodes it has."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError

from dfka_dist import machine
from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError, RunFailed
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.teachers.placement import PlacementPlan

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}
PRIVATE = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_worker_niceness": str(19 - machine.BEHIND),
}
"""Of a private cluster: nobody looks at the history of its calls, of which Ray notes several lines
for each; and with Ray's own niceness of 15 a thread could give way by 4 steps alone."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for the driver of a submitted job, and for nobody else; beside it `RAY_ADDRESS`, as
HOST:PORT of the cluster that the driver is in."""
WORKERS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of servers and workers, which share cores: a thread that waits gives up its own."""


def submitted(config: RunConfig) -> RunConfig:
    """The same run, but that as a submitted job without an address it has that of its cluster.

    `RAY_ADDRESS` alone does not tell: it may be what `ray job submit` itself is to ask.
    """
    if config.run.address or SUBMITTED not in os.environ:
        return config
    run = config.run.model_copy(update={"address": os.environ.get("RAY_ADDRESS", "auto")})
    return config.model_copy(update={"run": run})


@contextlib.contextmanager
def connected(address: str | None, plan: PlacementPlan | None) -> Iterator[list[NodeResources]]:
    """Connect to a cluster, or start a private one on this machine; gives its nodes.

    Args:
        plan: what a private cluster must have room for; CPUs are shares there, not cores.

    Raises:
        InputError: there is no cluster at the address.
    """
    if address:
        _knock(address)
    try:
        _connect(address, plan)
    except AuthenticationError as error:
        raise _no_token(address or "this machine") from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address:
            raise _no_cluster(address, str(error)) from error
        raise RunFailed(f"Ray did not start on this machine: {error}") from error
    try:
        yield nodes()
    finally:
        own = [] if address else _started()
        ray.shutdown()
        for process in own:  # one of Ray's may hang in its own exit
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _started() -> list[psutil.Process]:
    """The raylet of a private cluster, and all that it has started."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, IndexError):
            if Path(child.cmdline()[0]).name == "raylet":
                found += [child, *child.children(recursive=True)]
    return found


def _knock(address: str) -> None:
    """Is anybody there? Ray itself asks for minutes, and fills the terminal meanwhile."""
    found = address
    if address == "auto":
        try:
            with _unheard():
                found = canonicalize_bootstrap_address(address) or ""
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(address, str(error)) from error
    host, _, port = found.rpartition(":")
    if "/" in found or not host or not port.isdecimal():
        raise _no_cluster(address, "it is no HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        with _unheard():
            GcsClient(address=found)  # who has the wrong token is told so here, and not by init
    except AuthenticationError as error:
        raise _no_token(address) from error
    except (OSError, OverflowError, UnicodeError, RpcError) as error:
        raise _no_cluster(address, str(error)) from error


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What Ray's own code writes to stderr is dropped; it does not go through Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _no_token(address: str) -> InputError:
    return InputError(
        "run.address",
        f"the Ray cluster at {address} was not given its token",
        "RAY_AUTH_MODE=token with the cluster's own in RAY_AUTH_TOKEN or ~/.ray/auth_token",
    )


def _no_cluster(address: str, why: str) -> InputError:
    remedy = "auto, or HOST:PORT of a running Ray cluster"
    return InputError("run.address", f"no Ray cluster at {address}: {why}", remedy)


def _connect(address: str | None, plan: PlacementPlan | None) -> None:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    where: dict[str, Any] = {"address": address}
    if plan is not None and address is None:
        cpus = max(os.cpu_count() or 1, math.ceil(plan.cpus))
        where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    # Ray takes SIGTERM for itself, and dies of it without stopping what it started.
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.nullcontext() if address else _by_itself():
        ray.init(
            **where,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": WORKERS},
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """A cluster that is started within is on the loopback, with `PRIVATE` in its environment unless
    something else is there, for as long as it takes to start: it hands that on to all it starts."""
    added = {key: value for key, value in PRIVATE.items() if key not in os.environ}
    os.environ.update(added)
    try:
        with _on_loopback():
            yield
    finally:
        for key in added:
            del os.environ[key]


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """What is started within is on 127.0.0.1, and listens nowhere else.

    Ray takes that address only on systems on which it makes no clusters, and elsewhere looks for
    one that other machines reach.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def nodes() -> list[NodeResources]:
    """The living nodes of the cluster that this process is connected to."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        NodeResources(
            name=node["NodeManagerAddress"],
            cpus=float(node["Resources"].get("CPU", 0)),
            gpus=float(node["Resources"].get("GPU", 0)),
            labels=node["Labels"],
        )
        for node in alive
    ]


def draining() -> set[str]:
    """Ids of the nodes that the cluster is about to take away."""
    return set(ray._private.state.state.get_draining_nodes())  # as Ray Train's own watcher does


def this_machine(config: RunConfig) -> list[NodeResources]:
    """The one node of a private cluster: CPUs as many as could be asked for, GPUs as many as there
    are."""
    serving, training = config.serving, config.training
    servers = serving.replicas * sum(len(teacher.blocks) + 1 for teacher in config.teachers)
    asked = serving.cpus * servers + training.worker_cpus * max(training.worker_range)
    memory = [
        torch.cuda.get_device_properties(index).total_memory / 2**30
        for index in range(torch.cuda.device_count())
    ]
    return [
        NodeResources(
            name="this machine",
            cpus=max(os.cpu_count() or 1, asked),
            gpus=len(memory),
            gpu_gigabytes=min(memory, default=None),
        )
    ]
