"""A lock that whoever compiles has, or that was left of one who was killed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from dfka_dist.training.compiling import await_compilers

PATIENCE = 1.0


@pytest.fixture(params=["deepspeed_op", "py311_cpu/deepspeed_op"])
def lock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made long ago."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    place: Path = tmp_path / request.param / "lock"
    place.parent.mkdir(parents=True)
    place.touch()
    os.utime(place, (time.time() - 60, time.time() - 60))
    return place


def test_a_lock_that_was_left_is_removed_with_a_warning(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await_compilers(PATIENCE)
    assert not lock.exists() and str(lock) in caplog.text


def test_a_lock_that_somebody_has_is_waited_for(lock: Path) -> None:
    held = lock.open("rb")
    waiting = threading.Thread(target=await_compilers, args=(PATIENCE,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and lock.exists()
    lock.unlink()  # as torch does when it has compiled
    held.close()
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_new_lock_may_be_of_another_machine(lock: Path) -> None:
    os.utime(lock)
    began = time.monotonic()
    await_compilers(PATIENCE)
    assert time.monotonic() - began > PATIENCE / 2 and not lock.exists()


def test_without_a_lock_nothing_is_waited_for(lock: Path) -> None:
    lock.unlink()
    began = time.monotonic()
    await_compilers()
    assert time.monotonic() - began < PATIENCE
