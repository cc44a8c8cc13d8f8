"""How a process treats its machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dfka_dist import machine

FAULTS = """
import resource, torch
from dfka_dist import machine
kept = machine.keep_freed_memory()
torch.set_num_threads(1)
images, layer = torch.randn(50, 1, 32, 32), torch.nn.Conv2d(1, 64, 3, padding=1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layer(images).relu().square().sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, [faults() for _ in range(20)][-1])
"""
PAGES = 1000
"""Many fewer than the layer's outputs have, which are 3,200 each."""

HERE = machine.cores(Path("/nowhere"))
"""Cores of this process."""
ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness")


def faults(**variables: str) -> tuple[str, int]:
    """Whether a new process keeps freed memory, and its page faults when it does the same again."""
    code = [sys.executable, "-c", FAULTS]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(code, env=clean | variables, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@ON_GLIBC
def test_an_array_that_was_freed_is_there_for_the_next() -> None:
    kept, count = faults()
    assert kept == "True"
    assert count < PAGES


@ON_GLIBC
def test_whoever_has_set_the_allocator_is_left_alone() -> None:
    kept, count = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False"
    assert count > PAGES


@ON_LINUX
def test_a_thread_gives_way_to_those_that_were_there_before_it_did() -> None:
    told: list[int] = []

    def run() -> None:
        machine.give_way()
        told.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert told == [min(19, own + machine.BEHIND)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.parametrize(
    ("said", "expected"),
    [("max 100000", HERE), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", HERE)],
)
def test_a_container_may_have_fewer_cores_than_there_are(
    tmp_path: Path, said: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{said}\n")
    assert machine.cores(tmp_path / "cpu.max") == expected


def test_there_are_no_more_cores_than_the_system_lets_this_process_have() -> None:
    assert 1 <= HERE <= (os.cpu_count() or 1)
