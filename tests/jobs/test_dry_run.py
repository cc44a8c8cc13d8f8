"""A dry run says what would happen and where, and nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from running import Ended, run

from dfka_dist.loading import load

Call = Callable[..., Ended]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def test_it_prints_the_whole_run(call: Call, config: Path, output: Path) -> None:
    shown = call("amalgamate", "--config", config, "--output", output, "--dry-run").out
    tree = yaml.safe_load(shown.partition("placement")[0])
    assert tree == load(config).model_dump(mode="json")


def test_it_prints_the_run_with_what_was_set(call: Call, config: Path) -> None:
    shown = call("amalgamate", "--config", config, "--set", "training.steps=77", "--dry-run").out
    assert "\n  steps: 77\n" in shown


def test_it_prints_where_servers_and_workers_would_be(call: Call, config: Path) -> None:
    shown = call("amalgamate", "--config", config, "--dry-run").out
    assert shown.endswith(
        "placement (PACK):\n"
        "  server of low, replica 0: 0.5 CPU on this machine\n"
        "  server of high, replica 0: 0.5 CPU on this machine\n"
        "  worker 0: 1 CPU\n"
    )


def test_it_warns_of_a_link_whose_features_mean_nothing(call: Call, config: Path) -> None:
    """The recipe alone is not the paper."""
    given = ["--config", config, "--dry-run", "--set", "training.recipe=paper"]
    assert call("amalgamate", *given).err.startswith("warning: losses.link: ")
    assert call("amalgamate", *given, "--set", "losses.group=1.0").err == ""


def test_it_warns_where_the_memory_does_not_hold_the_whole_way(call: Call, config: Path) -> None:
    given = ["--config", config, "--set", "training.memory_megabytes=1", "--dry-run"]
    few, many = (call("amalgamate", *given, "--set", f"training.steps={n}").err for n in (1, 10**6))
    assert few == ""
    assert many.startswith("warning: training.memory_megabytes: ")
    assert " of 1000000 steps fit" in many


@pytest.mark.parametrize(("memory", "warned"), [("", True), (", gpu_gigabytes: 24", False)])
def test_it_warns_where_the_memory_of_no_gpu_is_known(
    call: Call, config: Path, tmp_path: Path, memory: str, warned: bool
) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(f"- {{name: large, cpus: 8, gpus: 2{memory}}}\n")
    given = ["--config", config, "--dry-run", "--nodes", nodes, "--set", "serving.gpus=0.5"]
    said = call("amalgamate", *given).err
    assert said.startswith("warning: serving.gpu_gigabytes: ") if warned else said == ""


def test_it_plans_for_other_nodes(call: Call, config: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("- {name: small, cpus: 0.6}\n- {name: large, cpus: 8, gpus: 1}\n")
    shown = call("amalgamate", "--config", config, "--dry-run", "--nodes", nodes).out
    assert "low, replica 0: 0.5 CPU on small\n" in shown
    assert "high, replica 0: 0.5 CPU on large\n" in shown


@pytest.mark.parametrize("job", ["amalgamate", "tune"])
def test_for_other_nodes_it_asks_neither_the_storage_nor_the_output_folder(
    call: Call, write: Callable[..., Path], tmp_path: Path, job: str
) -> None:
    nodes, folder = tmp_path / "nodes.yaml", tmp_path / "out"
    nodes.write_text("[{name: large, cpus: 8}]")
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    config = write(tmp_path, search={"space": {"losses.batch_norm": {"log": [1, 2]}}})
    stored = "training.checkpoint.storage=s3://nowhere/runs?endpoint_override=127.0.0.1:9"
    given = ("--config", config, "--output", folder, "--set", stored, "--dry-run")
    assert call(job, *given, "--nodes", nodes).code == 0


def test_it_refuses_nodes_that_are_too_small(call: Call, config: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("- {name: small, cpus: 1.5}\n")
    ended = call("amalgamate", "--config", config, "--dry-run", "--nodes", nodes)
    assert ended.refusal.startswith("error: serving.cpus: servers and workers ask for 2 ")


def test_an_address_for_ray_job_submit_is_none_of_a_run(
    call: Call, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert "0.5 CPU on this machine\n" in call("amalgamate", "--config", config, "--dry-run").out


def test_it_writes_nothing(call: Call, config: Path, output: Path) -> None:
    assert call("amalgamate", "--config", config, "--output", output, "--dry-run").code == 0
    assert not output.exists()


def test_as_a_program_it_ends_with_code_0_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    ended = run("amalgamate", "--config", config, "--dry-run", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert sorted(tmp_path.iterdir()) == before
