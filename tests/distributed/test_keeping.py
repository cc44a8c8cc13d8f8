"""Whether a sweep is over, here or in its storage, and what can be brought back; without Ray."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from dfka_dist.config import SearchSpec
from dfka_dist.copies import Copy
from dfka_dist.errors import InputError
from dfka_dist.places import Place
from dfka_dist.tuning import keeping
from dfka_dist.tuning.records import Folder, TrialRecord

SPACE: dict[str, Any] = {"space": {"losses.group": {"log": [0.1, 1]}}}


def spec(**own: Any) -> SearchSpec:
    return SearchSpec.model_validate(SPACE | own)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder of a sweep of ten trials that is over."""
    told = {"best": {}, "budget": keeping.budget(spec(trials=10))}
    (tmp_path / "sweep.json").write_text(json.dumps({"search": {"pilots": 3}}))
    (tmp_path / "result.json").write_text(json.dumps(told))
    (tmp_path / "sweep.html").write_text("<html>")
    return tmp_path


@pytest.fixture
def copy(left: Path, tmp_path: Path) -> Copy:
    made = Copy(
        Place(str(tmp_path / "copy"), "key"), left, ("sweep.json", "result.json", "sweep.html")
    )
    made.make()
    return made


@pytest.mark.parametrize(
    ("budget", "over"),
    [
        ({"trials": 10}, True),
        ({"trials": 5}, True),
        ({"trials": 10, "seconds": 60.0}, True),
        ({"trials": 11}, False),
        ({"seconds": 60.0}, False),
    ],
)
def test_a_sweep_is_over_until_it_may_spend_more(
    left: Path, copy: Copy, budget: dict[str, Any], over: bool
) -> None:
    assert keeping.is_over(left, spec(**budget)) == over
    assert keeping.is_copied(copy, spec(**budget)) == over


@pytest.mark.parametrize("missing", ["sweep.html", "result.json"])
def test_a_sweep_without_its_page_or_result_is_not_over(left: Path, missing: str) -> None:
    (left / missing).unlink()
    assert not keeping.is_over(left, spec(trials=10))


def test_a_copy_that_is_reopened_keeps_all_but_the_page(copy: Copy, tmp_path: Path) -> None:
    copy.reopen()
    copy.reopen()
    assert not keeping.is_copied(copy, spec(trials=10))
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"sweep.json", "result.json"}


def test_the_copy_of_another_sweep_is_refused(copy: Copy) -> None:
    keeping.refuse_another_copy(copy, {"search": {"pilots": 3}})
    with pytest.raises(InputError, match=r"^search\.pilots: is 4 and was 3"):
        keeping.refuse_another_copy(copy, {"search": {"pilots": 4}})


def test_trials_that_are_over_are_brought_back_where_none_are(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    place = Place(str(tmp_path / "storage"), "key")
    kept = keeping.Kept(here, Copy(place, here, ("sweep.html",)), [].append)
    here.mkdir()
    kept.begin()
    over = [TrialRecord(n, f"t{n}", {"a": 1.0}, "finished", pilot=False) for n in range(3)]
    for record in over:
        kept.write(record)
    kept.began("cut")
    kept.forget(over[2:])
    there.mkdir()
    keeping.restore(there, Copy(place, there, ("sweep.html",)))
    assert Folder(there).records() == over[:2] and not Folder(there).is_running("cut")
    kept.forget(over[1:2])
    keeping.restore(there, Copy(place, there, ("sweep.html",)))
    assert Folder(there).records() == over[:2]


def test_trials_in_the_storage_are_not_begun_anew_unasked(left: Path, tmp_path: Path) -> None:
    copy = Copy(Place(str(tmp_path / "cut"), "key"), left, ("sweep.json", "sweep.html"))
    keeping.refuse_trials(copy)
    copy.add("sweep.json")
    with pytest.raises(InputError, match="already holds a sweep that was cut short"):
        keeping.refuse_trials(copy)


def test_a_storage_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file")
    said: list[str] = []
    copy = Copy(Place(str(tmp_path / "storage" / "run"), "key"), tmp_path, ("sweep.html",))
    kept = keeping.Kept(tmp_path, copy, said.append)
    kept.write(TrialRecord(0, "t0", {}, "failed", pilot=False))
    (line,) = said
    assert line.startswith("warning: what trials leave is here alone: ")
    assert len(kept.records()) == 1


def test_what_trials_have_of_it_knows_the_start_and_no_storage(tmp_path: Path) -> None:
    kept = keeping.Kept(tmp_path, Copy(None, tmp_path, ()), [].append)
    kept.begin()
    own = pickle.loads(pickle.dumps(kept))
    assert type(own) is Folder and own.own == kept.own
    kept.stop()
    assert own.is_stopped
