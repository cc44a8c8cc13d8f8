"""What trials leave, and what of it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfka_dist.tuning.records import Folder, TrialRecord


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Of a sweep with two trials that are over."""
    folder = Folder(tmp_path)
    for number, name in enumerate(("first", "second")):
        point = {"losses.l2": number}
        folder.write(TrialRecord(number, name, point, status="finished", pilot=False))
    return folder


@pytest.mark.parametrize("text", ['{"number": 1, "na', "", "[1]", "{}", '{"strange": 1}'])
def test_a_trial_whose_record_is_broken_did_not_end(
    folder: Folder, tmp_path: Path, text: str
) -> None:
    (tmp_path / "trials" / "second" / "trial.json").write_text(text)
    assert [record.name for record in folder.records()] == ["first"]
    folder.begin()
    trials = [place.name for place in (tmp_path / "trials").iterdir() if place.is_dir()]
    assert trials == ["first"]


def test_trials_are_in_the_order_in_which_they_ended(folder: Folder) -> None:
    assert [record.number for record in folder.records()] == [0, 1]
