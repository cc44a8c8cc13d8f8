"""In what workers compute: all in one precision, which stays that in which the run began."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from dfka_dist.config import Precision
from dfka_dist.training.collectives import gathered
from dfka_dist.training.engines import fitting

log = logging.getLogger(__name__)

NAME = "computing"
"""Of this in a checkpoint's `run.json`."""


@dataclass(frozen=True)
class Computing:
    """What bits depend on, beside the configuration."""

    precision: Precision
    threads: list[int]
    """Of an operation on a CPU, by rank."""

    def told(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {NAME: asdict(self)}


def agreed(
    wanted: Literal["auto"] | Precision,
    device: torch.device,
    before: Mapping[str, Any] | None = None,
) -> Computing:
    """In what all workers are to compute; a collective.

    The least that `auto` is on any of them, or what it was when the run began: a machine that is
    slow in bf16 can do it. Says so where that, or other threads, make a difference.

    Args:
        before: what a checkpoint says that the run goes on from.
    """
    told = gathered((fitting(wanted, device), torch.get_num_threads()))
    threads, found = [count for _, count in told], {precision for precision, _ in told}
    precision: Precision = "bf16" if found == {"bf16"} else "fp32"
    if len(found) > 1:
        log.warning("computing in fp32: not all workers multiply in bf16 (training.precision)")
    if before is None:
        return Computing(precision, threads)
    began, counts = before.get("precision"), before.get("threads")
    if began in ("fp32", "bf16") and began != precision:
        log.warning("computing in %s, as the run began, and not in %s", began, precision)
        precision = began
    if isinstance(counts, list) and len(counts) == len(threads) and counts != threads:
        log.warning(
            "workers have %s CPU threads and had %s: the rest of the run will not be bit for bit "
            "the undisturbed one's (training.threads)",
            threads,
            counts,
        )
    return Computing(precision, threads)
