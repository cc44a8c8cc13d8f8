"""Jobs, started as a user starts them, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

HERE = Path(__file__).parent
JOBS = HERE.parents[1] / "jobs"
EXACT = {"precision": "fp32"}
"""Which depth has the least dual loss, and so how many networks there are, is of no machine."""


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk in memory at a new place, by the options of tmpfs; needs root."""
    if os.geteuid() != 0:
        assert "CI" not in os.environ, "CI must not pass over this"
        pytest.skip("mounting needs root")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The only line of a job that refused its input."""
        assert (self.code, self.out) == (2, "")
        (line,) = self.err.splitlines()
        return line


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    config: Path
    folder: Path
    ended: Ended
    traces: set[Path]
    """That it left outside of its folder."""
    listened: frozenset[tuple[str, str]] = frozenset()
    """Addresses where it and its processes listened while it went on, and which processes."""

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found


def _hear_ctrl_c() -> None:
    """Tests in the background ignore it, and what they start would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(name: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a job in a process group of its own; it can import the modules beside this file, and
    what the tests can."""
    places = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, str(JOBS / f"{name}.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )


def run(name: str, *arguments: str | Path, cwd: Path | None = None) -> Ended:
    """Run a job to its end."""
    with start(name, *arguments, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    return Ended(process.returncode, out, err)


def listening(process: subprocess.Popen[str]) -> set[tuple[str, str]]:
    """Where a job and all that it has started listen: addresses, and who it is."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        job = psutil.Process(process.pid)
        for each in (job, *job.children(recursive=True)):
            with suppress(psutil.Error):
                for socket in each.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.add((socket.laddr.ip, " ".join(each.cmdline())))
    return found


def traces() -> set[Path]:
    """What runs may leave on a machine outside of their folders."""
    temporary = Path(tempfile.gettempdir())
    return {*Path("/dev/shm").iterdir(), *temporary.glob("dfka-*")}


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Bytes in the format of MNIST's files."""
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(header + bytes(values.flatten().tolist()))


def keys(tree: Any) -> Any:
    """The names in a tree of dictionaries and lists, without the values."""
    if isinstance(tree, dict):
        return {key: keys(value) for key, value in tree.items()}
    return [keys(value) for value in tree] if isinstance(tree, list) else None
