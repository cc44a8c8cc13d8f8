"""Whether a sweep is over, here or in its storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfka_dist.config import SearchSpec
from dfka_dist.copies import Copy
from dfka_dist.errors import InputError
from dfka_dist.places import Place
from dfka_dist.tuning import keeping

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
