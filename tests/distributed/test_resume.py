"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from dfka_dist.archive import ArchivedTeacher, ArchiveWriter, Contents
from dfka_dist.errors import InputError, Interrupted, NotKept, RunFailed
from dfka_dist.training.archiving import Archiving
from dfka_dist.training.checkpoint import Reading, Writing, write_json
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.shelf import FolderShelf
from distributed.recipes import PHASES, Ran, Run

pytestmark = pytest.mark.usefixtures("process_group")


class Struck(Exception):
    """What takes a run down in the middle."""


def interrupting(at: int) -> Callable[[Record], None]:
    """Takes a run down when it tells of this step."""

    def tell(record: Record) -> None:
        if record["global_step"] == at:
            raise Struck

    return tell


def shelf(place: Path) -> FolderShelf:
    return FolderShelf(str(place), keep=2)


def same(one: Outcome, other: Outcome) -> bool:
    """Whether all networks that came out are the same bits, and were judged the same."""
    return len(one.networks) == len(other.networks) and all(
        a.name == b.name
        and a.data_free == b.data_free
        and all(b.state[key].equal(value) for key, value in a.state.items())
        for a, b in zip(one.networks, other.networks, strict=True)
    )


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def steps_of(ran: Ran) -> int:
    return sum(int(phase["steps"]) for phase in ran.outcome.phases)


@pytest.fixture(scope="module", params=PHASES)
def ran(request: pytest.FixtureRequest, run: Run) -> Ran:
    return run(request.param, report_every=1)


def test_a_run_goes_on_bit_for_bit_wherever_it_was_interrupted(
    ran: Ran, run: Run, tmp_path: Path
) -> None:
    """Again and again, three steps further on each time."""
    settings = {"report_every": 1, "checkpoint": {"every": 1}}
    for at in itertools.count(2, 3):
        try:
            done = run(ran.name, shelf=shelf(tmp_path), tell=interrupting(at), **settings).outcome
        except Struck:
            assert at <= steps_of(ran)
            continue
        break
    assert same(done, ran.outcome)
    phases = [(phase["name"], phase["steps"]) for phase in done.phases]
    assert phases == [(phase["name"], phase["steps"]) for phase in ran.outcome.phases]


def test_a_run_between_two_checkpoints_goes_on_from_the_earlier(run: Run, tmp_path: Path) -> None:
    undisturbed = run("noise", report_every=1)
    settings: dict[str, Any] = {"report_every": 1, "checkpoint": {"every": 3}}
    with pytest.raises(Struck):
        run("noise", shelf=shelf(tmp_path), tell=interrupting(8), **settings)
    again = run("noise", shelf=shelf(tmp_path), **settings)
    assert [each["global_step"] for each in again.records] == [*range(1, steps_of(undisturbed) + 1)]
    assert same(again.outcome, undisturbed.outcome)


def test_a_run_that_is_told_to_stop_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every": 1000}}
    steps = itertools.count(1)
    with pytest.raises(Interrupted, match="stopped with a checkpoint at step 4; --resume"):
        run("noise", shelf=shelf(tmp_path), stopping=lambda: next(steps) == 4, **settings)
    assert shelf(tmp_path).steps() == [4]
    again = run("noise", shelf=shelf(tmp_path), **settings)
    assert same(again.outcome, run("noise").outcome)


@pytest.fixture
def blocked(tmp_path: Path) -> FolderShelf:
    """Where no checkpoint can be written at step 3."""
    (tmp_path / "checkpoint-000000003").touch()
    return shelf(tmp_path)


def test_a_run_goes_on_without_a_checkpoint_that_cannot_be_written(
    blocked: FolderShelf, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    ended = run("noise", shelf=blocked, checkpoint={"every": 3})
    assert re.search(
        "no checkpoint at step 3: .* cannot be written: .*; the run goes on", caplog.text
    )
    assert same(ended.outcome, run("noise").outcome)
    assert blocked.steps()[-2:] == [6, 9] and blocked.newest() is not None


def test_a_run_ends_there_if_it_is_told_to(blocked: FolderShelf, run: Run) -> None:
    with pytest.raises(NotKept, match="no checkpoint at step 3"):
        run("noise", shelf=blocked, checkpoint={"every": 3, "on_failure": "end"})


def test_a_run_does_not_go_on_from_a_checkpoint_of_another(run: Run, tmp_path: Path) -> None:
    """Which came there behind the driver's back."""
    teachers = [{"name": "one", "labels": ["a", "b"]}]
    first = FolderShelf(str(tmp_path), keep=2, identity={"teachers": teachers})
    with pytest.raises(Interrupted):
        run("noise", shelf=first, stopping=lambda: True)
    other = [teachers[0] | {"labels": ["a", "c"]}]
    second = FolderShelf(str(tmp_path), keep=2, identity={"teachers": other})
    said = r"is another run's: teachers\.0\.labels is \['a', 'c'\] and was \['a', 'b'\]"
    with pytest.raises(RunFailed, match=said):
        run("noise", shelf=second)


def rows(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(place).to_pylist()
    return sorted(found, key=lambda row: (row["step"], row["column"]))


def test_an_archive_goes_on_with_the_run_that_writes_it(run: Run, tmp_path: Path) -> None:
    """Struck before the first checkpoint and behind it; and over when the run goes on."""

    def archived(name: str, tell: Callable[[Record], None] = lambda record: None) -> None:
        kept = {"report_every": 1, "checkpoint": {"every": 3}, "archive": str(tmp_path / name)}
        run("joint", shelf=shelf(tmp_path / f"{name}-kept"), tell=tell, **kept)

    archived("undisturbed")
    for at in (2, 5, 12):
        with pytest.raises(Struck):
            archived("struck", interrupting(at))
    archived("struck")
    names = [p.name for p in sorted((tmp_path / "struck").iterdir())]
    assert names == [p.name for p in sorted((tmp_path / "undisturbed").iterdir())]
    assert rows(tmp_path / "struck") == rows(tmp_path / "undisturbed")


def test_shards_of_more_workers_than_there_are_now_stay(tmp_path: Path) -> None:
    """Two have written, then one; and one goes on from there."""
    teacher = ArchivedTeacher(name="one", task="multi_label", labels=["a"], sha256="1f")
    about = Contents(run="x", teachers=[teacher], labels=["a"], shape=(1, 2, 2))
    kept: list[Sequence[int]] = []
    for rank, count in enumerate((1, 2)):
        write_json(under(tmp_path / "0") / f"{rank}.json", {"shards": count, "others": []})
    for number, workers in enumerate((2, 1)):
        place = str(tmp_path / f"archive-{number}")
        archiving = Archiving(
            kept.append, lambda count, to=place: ArchiveWriter(to, about, shards=count)
        )
        read = tmp_path / str(number)
        archiving.restore(Reading(read, read, {"workers": workers}, {}, read), "archive")
        writing = Writing(tmp_path / str(number + 1), tmp_path / "lasting", 0, 1, {})
        with archiving.writing(0):
            archiving.save(writing, "archive")
    assert kept == [[1, 2], [1, 2]]


def under(place: Path) -> Path:
    (place / "archive").mkdir(parents=True, exist_ok=True)
    return place / "archive"


def test_a_run_does_not_go_on_without_what_it_had_archived(run: Run, tmp_path: Path) -> None:
    kept: dict[str, Any] = {"report_every": 1, "checkpoint": {"every": 3}}
    begun = {"shelf": shelf(tmp_path / "kept"), "archive": str(tmp_path / "archive")}
    with pytest.raises(Struck):
        run("joint", tell=interrupting(5), **begun, **kept)
    with pytest.raises(InputError, match=r"lacks part-00000-00000\.parquet, which this run has"):
        run("joint", **begun | {"archive": str(tmp_path / "elsewhere")}, **kept)


def test_a_run_that_began_without_an_archive_does_not_go_on_with_one(
    run: Run, tmp_path: Path
) -> None:
    kept: dict[str, Any] = {"report_every": 1, "checkpoint": {"every": 3}}
    with pytest.raises(Struck):
        run("joint", shelf=shelf(tmp_path), tell=interrupting(5), **kept)
    with pytest.raises(InputError, match="the run began without one"):
        run("joint", shelf=shelf(tmp_path), archive=str(tmp_path / "archive"), **kept)
