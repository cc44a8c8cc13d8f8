"""What a ledger counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from dfka_dist.config import CheckpointSpec, TrainingSpec
from dfka_dist.errors import Interrupted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.training.diary import Diary
from dfka_dist.training.ledger import Ledger
from dfka_dist.training.shelf import FolderShelf


def test_what_is_waited_for_before_a_checkpoint_is_time_of_saving(tmp_path: Path) -> None:
    diary = Diary(TrainingSpec(), LocalTeachers({}), None)
    shelf = FolderShelf(str(tmp_path), keep=1)
    ledger = Ledger(diary, CheckpointSpec(every=1), shelf)
    with ledger.phase("any", 1, settle=lambda: time.sleep(0.3)) as phase:
        for step in phase.steps():
            diary.tell(step + 1)
    shelf.close()
    assert shelf.steps() == [1] and ledger.saving_seconds >= 0.3


LATE = 1.0
"""Seconds that rank 0 takes for its second step."""


def stopped(rank: int, meeting: str, told: str) -> None:
    """Both are told to stop from the first; rank 1 says how long its second step took."""
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    diary = Diary(TrainingSpec(), LocalTeachers({}), None)
    ledger = Ledger(diary, CheckpointSpec(every=1), stopping=lambda: True)
    with pytest.raises(Interrupted), ledger.phase("any", 3) as phase:
        for step in phase.steps():
            began = time.monotonic()
            time.sleep(LATE if step == 1 and rank == 0 else 0)
            diary.tell(step + 1)
    if rank == 1:
        Path(told).write_text(str(time.monotonic() - began))
    torch.distributed.destroy_process_group()


def test_who_is_stopped_has_heard_from_all_that_are(tmp_path: Path) -> None:
    """What was said last is with everybody: a process that ends leaves no collective behind."""
    meeting, told = f"file://{tmp_path / 'rendezvous'}", tmp_path / "told"
    torch.multiprocessing.spawn(stopped, (meeting, str(told)), nprocs=2)
    assert float(told.read_text()) > LATE / 2
