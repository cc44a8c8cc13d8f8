"""A tiny run on disk, and a way to call jobs in this process."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import torch
import yaml
from running import EXACT, JOBS, Ended, Finished, listening, start, traces, write_idx

from dfka_dist import commandline
from dfka_dist.config import TeacherSpec

LABELS = ["0", "1", "2", "3"]

Write = Callable[..., Path]
Call = Callable[..., Ended]


@pytest.fixture(scope="session")
def tiny(
    make_teacher: Callable[..., TeacherSpec], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The smallest whole run: two teachers of two labels each, forty test images."""
    data = tmp_path_factory.mktemp("idx")
    random = torch.Generator().manual_seed(0)
    write_idx(data / "t10k-images-idx3-ubyte", torch.randint(256, (40, 16, 16), generator=random))
    write_idx(data / "t10k-labels-idx1-ubyte", torch.arange(40) % len(LABELS))
    specs = [make_teacher("low", LABELS[:2]), make_teacher("high", LABELS[2:])]
    steps = {"steps": 8, "rehearsal_steps": 4, "fine_tune_steps": 4, "branch_steps": 0}
    return {
        "run": {"name": "tiny", "seed": 0},
        "teachers": [spec.model_dump() for spec in specs],
        "target": {"labels": "all", "arguments": {"widths": [4, 6, 8]}},
        "generator": {"latent": 6},
        "training": steps
        | {"batch_size": 8, "report_every": 2, "memory_megabytes": 1, "probe_images": 64},
        "evaluations": {"squares": {"source": f"idx:{data}"}},
    }


@pytest.fixture(scope="session")
def write(tiny: dict[str, Any]) -> Write:
    """Write the tiny run to a folder, with other sections, or without those that are None."""

    def write(folder: Path, **sections: Any) -> Path:
        tree = {key: value for key, value in (tiny | sections).items() if value is not None}
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished(
    tiny: dict[str, Any], write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """The tiny run, with test data, checkpoints and targets at other depths."""
    place = tmp_path_factory.mktemp("finished")
    training = tiny["training"] | EXACT | {"branch_steps": 2, "checkpoint": {"every": 5}}
    config, folder, before = write(place, training=training), place / "run", traces()
    listened = set[tuple[str, str]]()
    with (
        start("amalgamate", "--config", config, "--output", folder) as process,
        ThreadPoolExecutor() as beside,
    ):
        try:
            told = beside.submit(process.communicate, timeout=300)
            while not told.done():
                listened |= listening(process)
                wait([told], timeout=0.5)
            ended = Ended(process.returncode, *told.result())
        finally:
            process.kill()
    return Finished(config, folder, ended, traces() - before, frozenset(listened))


@pytest.fixture
def config(write: Write, tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.fixture(scope="session")
def programs() -> dict[str, ModuleType]:
    """The jobs as modules; loading them loads Ray and DeepSpeed."""
    loaded = {}
    for name in ("amalgamate", "evaluate", "benchmark", "pretrain", "tune"):
        spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded[name]  # dataclasses look for their module
        spec.loader.exec_module(loaded[name])
    return loaded


@pytest.fixture
def call(
    programs: dict[str, ModuleType],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Call:
    """Call a job that starts nothing in this process: `call("amalgamate", "--config", path)`.

    Warnings and log lines count as lines on stderr: in a process of its own they would be.
    """

    def call(name: str, *arguments: str | Path) -> Ended:
        was_connected = ray.is_initialized()
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            for category in (UserWarning, RuntimeWarning, FutureWarning):
                warnings.simplefilter("default", category)
            code = commandline.guarded(programs[name].main)([str(each) for each in arguments])
        assert ray.is_initialized() == was_connected, "the job started Ray, or stopped it"
        out, err = capsys.readouterr()
        chatter = [str(warning.message) for warning in warned]
        chatter += [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
        return Ended(code, out, err + "".join(f"{line}\n" for line in chatter))

    return call
