"""Which points come next, and what ends a sweep; Ray Tune is not started."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.errors import NoRoom, RunFailed, TeacherUnavailable
from dfka_dist.tuning import listening
from dfka_dist.tuning.importance import importances
from dfka_dist.tuning.leaving import Leavers
from dfka_dist.tuning.listening import FAILURES, Listener, Switch
from dfka_dist.tuning.picture import write_page
from dfka_dist.tuning.ranking import Standing
from dfka_dist.tuning.records import DIED, Folder, TrialRecord, write_table
from dfka_dist.tuning.sampling import sampled
from dfka_dist.tuning.showing import Showing
from dfka_dist.tuning.space import Space
from dfka_dist.tuning.trial import END, METRIC

KEY = "losses.batch_norm"
MakeSpace = Callable[..., Space]


@pytest.fixture(scope="module")
def make_space(
    make_config: Callable[..., RunConfig], make_teacher: Callable[..., TeacherSpec]
) -> MakeSpace:
    teachers = [make_teacher("one", ["a", "b"])]

    def make(algorithm: str = "tpe") -> Space:
        space = {KEY: {"log": [0.1, 1000]}, "losses.adversarial": {"linear": [0, 1]}}
        return Space(make_config(teachers, search={"space": space, "algorithm": algorithm}))

    return make


def record(number: int, batch_norm: float, agreement: float, **more: Any) -> TrialRecord:
    point = {KEY: batch_norm, "losses.adversarial": (0.37 * number) % 1}
    given: dict[str, Any] = {"status": "finished", "pilot": False, "agreements": [agreement]}
    return TrialRecord(number, f"t{number}", point, **(given | more))


KNOWN = [record(index, 10.0 ** (index % 4 - 1), 1 - index % 4 / 4) for index in range(16)]
"""The less the better."""


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_points_are_drawn_from_the_space(make_space: MakeSpace, algorithm: str) -> None:
    search = sampled(make_space(algorithm), KNOWN, 2)
    points = [search.suggest(str(index)) for index in range(20)]
    assert all(0.1 <= p[KEY] <= 1000 and 0 <= p["losses.adversarial"] <= 1 for p in points)


def test_what_earlier_trials_have_found_is_known(make_space: MakeSpace) -> None:
    knowing, guessing = sampled(make_space(), KNOWN, 1), sampled(make_space("random"), KNOWN, 1)
    low = [
        sum(search.suggest(str(index))[KEY] < 1 for index in range(30))
        for search in (knowing, guessing)
    ]
    assert low[0] > 20 > low[1]


def test_a_sweep_that_goes_on_draws_other_points(make_space: MakeSpace) -> None:
    first, second = (sampled(make_space("random"), KNOWN[:n], 1).suggest("a") for n in (0, 1))
    assert first != second


def test_what_matters_is_found(make_space: MakeSpace) -> None:
    found = importances(make_space(), KNOWN)
    assert found[KEY] > found["losses.adversarial"]


def test_the_page_of_a_sweep_has_trials_over_time_all_of_them_and_what_matters(
    make_space: MakeSpace, tmp_path: Path
) -> None:
    for known, pictures in ((KNOWN, 3), (KNOWN[:4], 2)):
        standings = [Standing(each, each.agreement, None) for each in known]
        write_page(tmp_path / "sweep.html", make_space(), standings, {})
        page = (tmp_path / "sweep.html").read_text()
        assert page.count("<svg") == pictures and ("Importance" in page) == (pictures == 3)


def test_few_trials_say_nothing_of_importance(make_space: MakeSpace) -> None:
    assert importances(make_space(), KNOWN[:4]) == {}


def test_a_table_takes_choices_of_any_kind(tmp_path: Path) -> None:
    write_table([{"branch": "last"}, {"branch": 2}, {"branch": None}], tmp_path / "trials.parquet")


# what ends


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def make_listener(folder: Folder) -> Callable[..., Listener]:
    def make(*, stopping: bool = False, at_once: int = 2, began: float | None = None) -> Listener:
        showing, leavers = Showing("sweep", io.StringIO()), Leavers(folder, patience=60)
        own: dict[str, Any] = {"pilots": False, "at_once": at_once, "leavers": leavers}
        began = time.monotonic() if began is None else began
        return Listener(folder, began, lambda: stopping, showing, **own)

    return make


def trial(name: str) -> Any:
    """What Tune hands to its callbacks, as far as it is looked at."""
    return SimpleNamespace(trial_id=name, config={KEY: 1.0})


def judged(listener: Listener, name: str, end: str | None = None) -> None:
    listener.on_trial_result(1, [], trial(name), {METRIC: 0.5, END: end})


def test_a_trial_that_is_behind_is_recorded_as_stopped(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    listener = make_listener()
    listener.on_trial_start(1, [], trial("a"))
    judged(listener, "a")
    listener.on_trial_complete(1, [], trial("a"))
    (record,) = folder.records()
    assert (record.status, record.agreements) == ("stopped", [0.5]) and not listener.running


def test_what_a_trial_warns_of_is_said_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "LOOKING", 0.0)
    stream = io.StringIO()
    listener = Listener(
        folder,
        time.monotonic(),
        lambda: False,
        Showing("sweep", stream),
        pilots=False,
        at_once=1,
        leavers=Leavers(folder, patience=60),
    )
    listener.on_trial_start(1, [], trial("a"))
    for line in ("no worker for 60 s", "no worker for 120 s"):
        folder.warn("a", line)
        for _ in range(2):
            listener.on_step_end(1, [])
    folder.warn("a", "no worker any more")
    listener.on_trial_error(1, [], trial("a"))
    said = ["no worker for 60 s", "no worker for 120 s", "no worker any more"]
    assert [line for line in stream.getvalue().splitlines() if "warning" in line] == [
        f"sweep: warning: trial a: {line}" for line in said
    ]
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned == [f"trial a: {line}" for line in said]


def test_a_record_that_cannot_be_written_is_no_failure_of_its_trial(
    make_listener: Callable[..., Listener], folder: Folder, tmp_path: Path
) -> None:
    listener = make_listener()
    listener.on_trial_start(1, [], trial("a"))
    judged(listener, "a", end="finished")
    (tmp_path / "trials").mkdir(exist_ok=True)
    (tmp_path / "trials" / "a").write_text("a file where its folder would be")
    listener.on_trial_complete(1, [], trial("a"))
    assert listener.fatal is not None and listener.fatal.startswith("trial a cannot be kept: ")
    assert folder.records() == []


def test_what_the_user_cuts_off_is_no_result(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    listener = make_listener(stopping=True)
    for name, end in (("cut", "stopped"), ("done", "finished")):
        listener.on_trial_start(1, [], trial(name))
        judged(listener, name)
        judged(listener, name, end)
        listener.on_trial_complete(1, [], trial(name))
    assert [record.name for record in folder.records()] == ["done"]


def test_what_the_end_of_the_time_cuts_off_is_no_result(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    """It was not behind; with more time its point may be tried again."""
    listener = make_listener()
    for name in ("cut", "done"):
        listener.on_trial_start(1, [], trial(name))
        judged(listener, name)
    assert not Switch(lambda: True, listener, patience=60).stop_all()
    for name, end in (("cut", "stopped"), ("done", "finished")):
        judged(listener, name, end)
        listener.on_trial_complete(1, [], trial(name))
    assert [record.name for record in folder.records()] == ["done"]


def test_a_record_says_nothing_of_places_outside_of_its_folder(
    folder: Folder, tmp_path: Path
) -> None:
    folder.write(record(0, 1.0, 0.5))
    victim = tmp_path / "victim"
    victim.mkdir()
    place = tmp_path / "trials" / "t0" / "trial.json"
    place.write_text(place.read_text().replace('"t0"', '"../victim"'))
    found = folder.records()
    assert [each.name for each in found] == ["t0"]
    folder.forget(found)
    assert victim.exists() and not place.exists()


def test_a_table_on_a_terminal_shows_what_runs_and_then_the_best() -> None:
    terminal = Terminal()
    showing = Showing("sweep", terminal)
    showing.known(KNOWN[:3])
    showing.begun("new", {KEY: 7.5, "losses.adversarial": 0.25})
    with showing:
        pass
    lines = [line for line in terminal.getvalue().splitlines() if "running" in line]
    assert lines and "7.5" in lines[-1] and "0.25" in lines[-1]
    shown = terminal.getvalue()
    at = [shown.rindex(what) for what in ("running", "1.000", "0.750", "0.500")]
    assert at == sorted(at)


class Terminal(io.StringIO):
    """It says that it is one."""

    def isatty(self) -> bool:
        return True


def test_trials_are_told_to_stop_and_waited_for(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    listener = make_listener()
    listener.on_trial_start(1, [], trial("a"))
    judged(listener, "a")
    switch = Switch(lambda: True, listener, patience=60)
    assert not switch.stop_all() and folder.is_stopped
    listener.on_trial_complete(1, [], trial("a"))
    assert switch.stop_all()


def test_they_are_not_waited_for_longer_than_it_may_take(
    make_listener: Callable[..., Listener],
) -> None:
    listener = make_listener()
    listener.on_trial_start(1, [], trial("a"))
    assert Switch(lambda: True, listener, patience=-1).stop_all()


def test_failures_one_after_another_end_a_sweep(make_listener: Callable[..., Listener]) -> None:
    listener = make_listener()
    switch = Switch(lambda: False, listener, patience=60)
    for index in range(FAILURES):
        assert not switch.stop_all()
        listener.folder.failed(f"t{index}", ValueError("no"))
        listener.on_trial_start(1, [], trial(f"t{index}"))
        listener.on_trial_error(1, [], trial(f"t{index}"))
    assert switch.stop_all() and listener.fatal is not None
    assert listener.fatal.endswith("the last: ValueError: no")


def failed(listener: Listener, name: str, error: Exception) -> None:
    listener.on_trial_start(1, [], trial(name))
    listener.folder.failed(name, error)
    listener.on_trial_error(1, [], trial(name))


@pytest.mark.parametrize("error", [NoRoom("no worker for 600 s"), TeacherUnavailable("one: lost")])
def test_what_is_not_a_trials_own_is_no_result(
    make_listener: Callable[..., Listener], folder: Folder, error: Exception
) -> None:
    listener = make_listener()
    failed(listener, "a", error)
    assert folder.records() == [] and listener.passed and listener.fatal is None


def test_a_failure_while_it_stops_is_no_result(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    failed(make_listener(stopping=True), "a", ValueError("no"))
    listener = make_listener(at_once=1)
    folder.stop()
    failed(listener, "b", ValueError("no"))
    failed(listener, "c", NoRoom("no worker for 600 s"))
    assert folder.records() == [] and listener.fatal is None


def test_a_sweep_ends_when_no_trial_finds_room(make_listener: Callable[..., Listener]) -> None:
    listener = make_listener(at_once=2)
    failed(listener, "a", NoRoom("no worker for 600 s"))
    assert listener.fatal is None
    failed(listener, "b", NoRoom("no worker for 600 s"))
    assert listener.fatal == "no trial finds room: no worker for 600 s"


def test_a_sweep_goes_on_with_the_trials_that_found_room(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    listener = make_listener(at_once=2)
    listener.on_trial_start(1, [], trial("housed"))
    folder.housed("housed")
    for index in range(2 * FAILURES):
        failed(listener, f"t{index}", NoRoom("no worker for 600 s"))
    assert listener.fatal is None and folder.is_housed("housed")


def test_a_process_that_dies_is_recorded_and_ends_nothing(
    make_listener: Callable[..., Listener], folder: Folder
) -> None:
    listener = make_listener()
    for index in range(FAILURES):
        assert listener.fatal is None
        listener.on_trial_start(1, [], trial(f"t{index}"))
        folder.began(f"t{index}")
        listener.on_trial_error(1, [], trial(f"t{index}"))
    assert {record.why for record in folder.records()} == {DIED}
    assert not folder.is_running("t0") and listener.fatal is not None
    assert listener.fatal.endswith("is there memory enough?")


def test_who_was_told_to_stop_is_waited_for_when_nothing_else_runs(folder: Folder) -> None:
    leavers = Leavers(folder, patience=60)
    folder.began("a")
    leavers.told("a")
    leavers.look(alone=False)
    assert folder.is_running("a")
    gone = threading.Timer(0.3, folder.ended, ["a"])
    gone.start()
    leavers.look(alone=True)
    assert not folder.is_running("a")
    gone.join()


def test_who_does_not_come_to_it_is_not_waited_for_longer(folder: Folder) -> None:
    leavers = Leavers(folder, patience=-1)
    folder.began("a")
    leavers.told("a")
    leavers.look(alone=True)


def test_of_two_starts_the_newer_one_writes(
    make_listener: Callable[..., Listener], folder: Folder, tmp_path: Path
) -> None:
    folder.begin()
    listener = make_listener()
    newer = Folder(tmp_path)
    newer.begin()
    listener.on_trial_start(1, [], trial("a"))
    judged(listener, "a", "finished")
    listener.on_trial_complete(1, [], trial("a"))
    assert Switch(lambda: False, listener, patience=60).stop_all()
    assert folder.is_stopped and not newer.is_stopped
    assert newer.records() == [] and listener.fatal
    with pytest.raises(RunFailed, match=f"^another start of this run writes to {tmp_path}$"):
        folder.refuse_another_start()
    newer.refuse_another_start()


def test_a_start_removes_what_trials_left_that_did_not_end(folder: Folder, tmp_path: Path) -> None:
    folder.write(record(0, 1.0, 0.5))
    folder.began("t1")
    folder.stop()
    newer = Folder(tmp_path)
    newer.begin()
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["t0"]


def test_the_time_of_a_start_counts_that_ended_no_trial(
    make_listener: Callable[..., Listener], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.begin()
    assert folder.elapsed == 0
    monkeypatch.setattr(listening, "LOOKING", -1)
    make_listener(began=time.monotonic() - 300).on_step_end(1, [])
    assert 300 <= folder.elapsed < 360
    folder.write(record(0, 1.0, 0.5, ended=900.0))
    assert folder.elapsed == 900
