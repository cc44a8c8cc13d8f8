"""What DeepSpeed has compiled at its first start on a machine, and a lock that may be left."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from torch.utils.cpp_extension import get_default_build_root

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds in which a machine that shares the folder, and whose processes are not seen here, has
compiled."""


def await_compilers(patience: float = PATIENCE) -> None:
    """Wait while another process compiles, and remove the lock of one that was killed: torch's own
    waiting has no end.

    Args:
        patience: seconds after which a lock counts as left, if no process here has it open.
    """
    for lock in _locks():
        while (age := _age(lock)) is not None and (age < patience or _is_held(lock)):
            time.sleep(0.2)
        if age is not None:
            log.warning("a compiler that was killed has left %s: removed", lock)
            lock.unlink(missing_ok=True)


def _locks() -> Iterator[Path]:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for pattern in ("deepspeed_*/lock", "*/deepspeed_*/lock"):
        yield from root.glob(pattern)


def _age(lock: Path) -> float | None:
    """Seconds since it was made; None if it is gone."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine has it open, as far as this user may know."""
    wanted = str(lock.resolve())
    for process in psutil.process_iter():
        try:
            if any(file.path == wanted for file in process.open_files()):
                return True
        except psutil.Error:
            continue
    return False
