"""Folders of a disk that takes nothing: refused before anything is started, by the user who may
write anywhere too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Ended, mounted

Call = Callable[..., Ended]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One that can only be read."""
    with mounted(tmp_path / "disk", "ro") as place:
        yield place


@pytest.mark.parametrize("job", ["amalgamate", "tune"])
def test_an_output_folder_that_can_only_be_read_is_refused(
    call: Call, config: Path, disk: Path, job: str
) -> None:
    space = "search={space: {losses.l2: {linear: [0, 1]}}, trials: 3}"
    more = ["--set", space] if job == "tune" else []
    refusal = call(job, "--config", config, "--output", disk / "run", *more).refusal
    what = "cannot be made or written (a writable folder)"
    assert refusal == f"error: --output: {disk / 'run'} {what}"


def test_a_storage_that_can_only_be_read_is_refused(
    call: Call, config: Path, tmp_path: Path, disk: Path
) -> None:
    more = ["--set", f"training.checkpoint.storage={disk / 'kept'}"]
    out = tmp_path / "out"
    refusal = call("amalgamate", "--config", config, "--output", out, *more).refusal
    what = "cannot be written (a place where files can be written)"
    assert refusal == f"error: training.checkpoint.storage: {disk / 'kept' / 'tiny'} {what}"
    assert not out.exists()
