"""How a process that computes on a CPU treats its machine."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"""Numbers of glibc's, from malloc.h."""
KEPT = 1 << 30
"""Bytes that a process keeps for the next batch; a single array above it is given back."""
AHEAD = 1 << 26
"""Bytes that it takes from the system at once."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the processors, in a control group of the second version."""
BEHIND = 10
"""Steps of niceness by which a thread gives way."""


def cores(quota: Path = QUOTA) -> int:
    """That this process may use, where that is less than there are: by affinity, or in a
    container.

    Args:
        quota: control group's file: microseconds of computing, or max, in a period of others.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        share, period = quota.read_text(encoding="ascii").split()
        allowed = max(1, int(share) // int(period))
    except (OSError, ValueError):  # there is none, or it says max
        return here or 1
    return min(here or 1, allowed)


def compute_with(threads: int) -> None:
    """Be a process that computes, with so many threads within its operations."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have the allocator keep what was freed, up to `KEPT`, for the next batch.

    glibc gives large arrays back to the system at once, and the system gives them anew page by
    page, each filled with zeros: a third of the time of a forward of small images. Whoever has set
    variables MALLOC_… is left alone.

    Returns:
        whether it does.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if is_set or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wanted = (
        (M_TRIM_THRESHOLD, KEPT),
        (M_TOP_PAD, AHEAD),
        (M_MMAP_THRESHOLD, KEPT),
        (M_ARENA_MAX, 1),  # what one thread freed is there for the other
    )
    return all(libc.mallopt(*pair) for pair in wanted)


def give_way() -> Callable[[], None]:
    """Let all threads that there are so far go before this one, where there are too few cores.

    On Linux a thread has a niceness of its own, which those that it starts inherit.

    Returns:
        What puts this thread back, if its user may do that.
    """
    if sys.platform != "linux":
        return lambda: None
    thread = threading.get_native_id()
    own = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, own + BEHIND)  # to 19 at most

    def take_back() -> None:
        with suppress(PermissionError):  # most users may only ever give way more
            os.setpriority(os.PRIO_PROCESS, thread, own)

    return take_back
