"""Event files of TensorBoard, written by whoever tells them.

TensorBoard's own writer has a thread, which fails by itself where a disk is full: it prints a
traceback, and nobody hears of it before the next event.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_NUMBERS = itertools.count()


class EventFile:
    """A new one.

    Args:
        folder: made if it is not there.
        purge: step from which on earlier files of the folder count no more; None for no step.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events = event_pb2
        folder.mkdir(parents=True, exist_ok=True)
        own = f"{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):04}"
        path = folder / f"events.out.tfevents.{own}"
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        try:
            self._write(file_version="brain.Event:2")
            if purge is not None:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(step=purge, session_log=start)
            self._file.flush()
        except OSError:
            self.close()
            path.unlink()
            raise

    def add(self, scalars: Iterable[tuple[str, float]], step: int) -> None:
        """Add scalars of one step; they are on disk when this returns.

        Raises:
            OSError: they cannot be written; what comes behind them could not be read.
        """
        from torch.utils.tensorboard.summary import scalar

        for tag, value in scalars:
            self._write(step=step, summary=scalar(tag, value))  # type: ignore[no-untyped-call]
        self._file.flush()

    def close(self) -> None:
        """Let the file be, whole or not."""
        with suppress(OSError):  # what could not be written before is tried again
            self._file.close()

    def _write(self, **what: object) -> None:
        event = self._events.Event(wall_time=time.time(), **what)
        self._records.write(event.SerializeToString())
