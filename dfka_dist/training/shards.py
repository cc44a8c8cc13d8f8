"""DeepSpeed's files, of which one rank may not be able to write its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def failing_late(engine: Any) -> Iterator[None]:
    """Within, a file that DeepSpeed cannot write is passed over until the end: this rank must come
    to the barriers in which the others wait. Programs that it would lay beside are left out.

    Args:
        engine: DeepSpeed's, which is saved within.

    Raises:
        OSError: the first failure, at the end.
    """
    files, failures = engine.checkpoint_engine, list[Exception]()

    def late(write: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*given: Any, **more: Any) -> Any:
            try:
                return write(*given, **more)
            except torch.OutOfMemoryError:
                raise
            except (OSError, RuntimeError) as error:  # torch.save's of a full disk is the second
                failures.append(error)

        return tried

    files.save, files.makedirs = late(files.save), late(files.makedirs)
    engine._copy_recovery_script = lambda place: None  # a checkpoint is data
    try:
        yield
    finally:
        del files.save, files.makedirs, engine._copy_recovery_script
    if failures:
        raise OSError(f"DeepSpeed's shard: {failures[0]}") from failures[0]
