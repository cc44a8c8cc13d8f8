"""What goes to a cluster in an uploaded folder, and what a pod does when it is stopped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import ray
import reading
import yaml
from ray._private.runtime_env.packaging import create_package

from dfka_dist.config.training import CheckpointSpec

LIMIT = 5 * 10**6
RUNTIME_ENV = reading.ROOT / "cluster" / "runtime_env.yaml"
DRIVER = """
import pathlib, signal, sys, time
def keep(*_):
    time.sleep(0.5)
    pathlib.Path("kept").touch()
    sys.exit(4)
signal.signal(signal.SIGTERM, keep)
pathlib.Path("begun").touch()
time.sleep(60)
"""


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that `ray job submit --working-dir .` would send."""
    path = tmp_path_factory.mktemp("upload") / "package.zip"
    create_package(
        str(reading.ROOT),
        path,
        include_gitignore=True,
        excludes=yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))["excludes"],
        logger=None,
    )
    return path


def test_an_upload_is_small(uploaded: Path) -> None:
    assert uploaded.stat().st_size < LIMIT


def test_an_upload_has_what_a_job_needs_and_nothing_else(uploaded: Path) -> None:
    names = zipfile.ZipFile(uploaded).namelist()

    assert {"jobs/amalgamate.py", "jobs/presets/digits.yaml", "dfka_dist/launch.py"} <= {*names}
    assert "jobs/presets/digits/low_digits.safetensors" in names
    assert {"dfka_dist/templates/model_card.md.j2"} <= {*names}
    assert {name.partition("/")[0] for name in names if "/" in name} == {"dfka_dist", "jobs"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_runtime_environment_lets_a_stopped_job_keep_itself_and_holds_no_secrets() -> None:
    tree = yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))

    assert set(tree) == {"excludes", "env_vars"}
    (variable,) = tree["env_vars"].items()
    assert variable[0] == "RAY_JOB_STOP_WAIT_TIME_S"
    assert int(variable[1]) > CheckpointSpec().grace


def test_a_driver_is_told_and_not_the_shell_that_started_it(leave: ModuleType) -> None:
    lines = [
        ["/bin/bash", "-c", "python /app/jobs/amalgamate.py --resume"],
        ["python", "/app/jobs/amalgamate.py", "--resume"],
        ["python", "/app/cluster/leave.py", "75"],
        ["/opt/venv/bin/python3.11", "jobs/tune.py"],
        [],
    ]

    assert leave.drivers(lines) == [1, 3]


def test_a_pod_knows_its_node_and_whether_anything_works_there(leave: ModuleType) -> None:
    raylet = ["/opt/venv/ray/core/src/ray/raylet/raylet", "--a=b", "--node_id=abc"]

    assert leave.own_node([[], ["bash"], raylet]) == "abc"
    assert leave.own_node([["bash"]]) is None
    assert leave.working([["ray::TeacherServer.forward"]])
    idle = ["ray::IDLE", "ray::DashboardAgent", "ray::_AutoscalingCoordinatorActor", "bash"]
    assert not leave.working([*([name] for name in idle), []])


def test_a_stopped_pod_waits_for_the_drivers_checkpoint(tmp_path: Path) -> None:
    """Among processes of its own: the hook tells every driver that it sees."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        lacking = "this needs the right to make a namespace of processes"
        assert "CI" not in os.environ, f"CI must not pass over this: {lacking}"
        pytest.skip(lacking)
    driver = tmp_path / "jobs" / "amalgamate.py"
    driver.parent.mkdir()
    driver.write_text(DRIVER, encoding="utf-8")
    hook = f"{sys.executable} {reading.ROOT / 'cluster' / 'leave.py'} 30"
    begin = f"{sys.executable} {driver} & until test -e begun; do sleep 0.1; done"

    ran = subprocess.run(
        [*apart, "sh", "-c", f"{begin}; {hook}; test -e kept"],
        cwd=tmp_path,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0


def test_servers_and_workers_are_called_what_a_pod_looks_for(leave: ModuleType) -> None:
    workers = Path(ray.__file__).parent / "train/v2/_internal/execution/worker_group/worker.py"
    servers = reading.ROOT / "dfka_dist" / "teachers" / "server.py"

    for name, file in zip(leave.AT_WORK, (servers, workers), strict=True):
        assert f"class {name.removeprefix('ray::')}" in file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def leave() -> ModuleType:
    """cluster/leave.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("leave", reading.ROOT / "cluster" / "leave.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_of_a_cluster_is_hidden_from_git() -> None:
    ran = subprocess.run(
        ["git", "check-ignore", "cluster/kubernetes/base/kustomization.yaml", ".dockerignore"],
        cwd=reading.ROOT,
        capture_output=True,
        check=False,
    )
    assert ran.returncode != 0
