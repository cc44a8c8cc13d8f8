"""A run on a cluster that exists, and has no room before it has grown: Ray's own autoscaler, whose
machines are processes of this one."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from running import run

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
GROWING = {
    "cluster_name": "growing",
    "max_workers": 2,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    **{key: [] for key in COMMANDS},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 2},
    },
    "upscaling_speed": 20,
    "idle_timeout_minutes": 5,
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster that grows when it is asked to."""
    with growing(tmp_path_factory.mktemp("growing")) as address:
        yield address


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of one that has not grown yet."""
    with growing(tmp_path_factory.mktemp("small")) as address:
        yield address


@contextmanager
def growing(folder: Path) -> Iterator[str]:
    """The address of a head without a CPU, beside which Ray starts nodes on demand."""
    port = _free_port()
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"}
    grows = json.dumps(GROWING | {"provider": provider})
    (folder / "cluster.json").write_text(grows, encoding="utf-8")
    (folder / "token").write_text(secrets.token_hex(32), encoding="utf-8")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="dfka-", ignore_cleanup_errors=True) as place,
        (folder / "log").open("w") as log,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        options = {
            "node-ip-address": "127.0.0.1",
            "port": port,
            "num-cpus": 0,
            "temp-dir": place,
            "include-dashboard": "false",
            "autoscaling-config": folder / "cluster.json",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--{key}={value}" for key, value in options.items()]
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        )
        try:
            _wait_for(lambda: _answers(port), "the head to answer")
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)


@pytest.mark.exhaustive
def test_a_run_whose_workers_come_to_other_nodes_keeps_nothing_on_their_disks(
    small: str, config: Path, tmp_path: Path
) -> None:
    """There was one node when it began, that of the driver."""
    storage = tmp_path / "storage"
    sets = {"run.address": small, "serving.wait_for_nodes": True}
    sets |= {"training.checkpoint.storage": storage, "training.checkpoint.every": 2}
    arguments = [a for key, value in sets.items() for a in ("--set", f"{key}={value}")]
    ended = run("amalgamate", "--config", config, "--output", tmp_path / "out", *arguments)
    *progress, said = ended.err.splitlines()
    assert ended.code == 3, "it had begun"
    assert said.startswith(f"error: training.checkpoint.storage: {storage}/tiny is a path on each")
    assert [line for line in progress if not line.startswith("tiny: ")] == []
    assert list(storage.rglob("checkpoint-*")) == []


@pytest.mark.exhaustive
def test_a_run_that_waits_for_nodes_is_given_them(
    address: str, config: Path, tmp_path: Path
) -> None:
    """And keeps no checkpoints, for want of a storage that all reach."""
    folder = tmp_path / "out"
    sets = ["--set", f"run.address={address}", "--set", "serving.wait_for_nodes=true"]
    ended = run("amalgamate", "--config", config, "--output", folder, *sets)
    assert ended.code == 0, ended.err
    assert "no checkpoints" in ended.err and not list(folder.glob("checkpoints/checkpoint-*"))
    assert (folder / "result.json").exists()


@pytest.mark.exhaustive
def test_a_run_does_not_begin_anew_beside_checkpoints_that_its_workers_do_not_reach(
    small: str, config: Path, tmp_path: Path
) -> None:
    """They lie in its output folder, of a time when all was on one node."""
    folder = tmp_path / "out"
    (folder / "checkpoints" / "checkpoint-000000500").mkdir(parents=True)
    sets = ["--set", f"run.address={small}", "--set", "serving.wait_for_nodes=true"]
    ended = run("amalgamate", "--config", config, "--output", folder, "--resume", *sets)
    said = (
        r"error: training\.checkpoint\.storage: .*/checkpoints holds checkpoints, and is a path on"
    )
    assert ended.code == 3 and re.match(said, ended.err.splitlines()[-1]), ended.err
    assert list(folder.glob("checkpoints/checkpoint-*")) and not (folder / "result.json").exists()


def test_a_run_that_does_not_wait_is_refused_with_what_is_there(
    address: str, config: Path, tmp_path: Path
) -> None:
    """What this asks for no two nodes have."""
    sets = ["--set", f"run.address={address}", "--set", "serving.cpus=100"]
    ended = run("amalgamate", "--config", config, "--output", tmp_path / "out", *sets)
    assert "serving.wait_for_nodes where the cluster grows" in ended.refusal


@pytest.mark.parametrize(
    "wrong",
    [
        {"RAY_AUTH_TOKEN": "a" * 64},
        pytest.param({"RAY_AUTH_MODE": "disabled"}, marks=pytest.mark.exhaustive),
        pytest.param({"RAY_AUTH_TOKEN_PATH": "/nowhere/at/all"}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_without_the_clusters_token_is_refused(
    address: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, str],
) -> None:
    for key, value in wrong.items():
        monkeypatch.setenv(key, value)
    place = ["--output", tmp_path / "out", "--set", f"run.address={address}"]
    refusal = run("amalgamate", "--config", config, *place).refusal
    assert refusal.startswith("error: run.address: the Ray cluster at 127.0.0.1:")
    assert "RAY_AUTH_TOKEN" in refusal


def test_nodes_that_do_not_come_in_time_are_named(
    address: str, config: Path, tmp_path: Path
) -> None:
    sets = {"run.address": address, "serving.wait_for_nodes": True, "serving.cpus": 100}
    sets["serving.start_timeout"] = 5
    arguments = [a for key, value in sets.items() for a in ("--set", f"{key}={value}")]
    ended = run("amalgamate", "--config", config, "--output", tmp_path / "out", *arguments)
    assert ended.code == 3
    assert "did not give [{'CPU': 100.0}" in ended.err and "serving.start_timeout" in ended.err


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait_for(happens: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < until, f"waited a minute for {what}"
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head and all that it started; nodes are children of its children."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    process.kill()
    _, alive = psutil.wait_procs(everyone, timeout=5)
    for one in alive:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive, timeout=10)
