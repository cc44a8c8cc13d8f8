"""What a ledger counts."""

from __future__ import annotations

import time
from pathlib import Path

from dfka_dist.config import CheckpointSpec, TrainingSpec
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
