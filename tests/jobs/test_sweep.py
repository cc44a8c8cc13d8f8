"""A sweep as a user starts it: killed in its middle, started again, and what it leaves."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from running import Ended, run, start, traces

from dfka_dist.loading import load
from dfka_dist.models.target import TargetNet
from dfka_dist.tuning.records import DIED, Folder

SHORT = {"training.steps": 4, "training.rehearsal_steps": 0, "training.fine_tune_steps": 0}
SEARCH: dict[str, Any] = {
    "space": {"losses.batch_norm": {"log": [0.1, 100]}, "losses.adversarial": {"linear": [0, 1]}},
    "trial": SHORT,
    "pilots": 2,
    "trials": 3,
    "concurrent": 2,
}
"""By Optuna and ASHA."""
HALF = {"worker_cpus": 0.5}
"""Two workers find room beside the teachers on two cores."""
GRID: dict[str, Any] = {
    "space": {
        "losses.batch_norm": {"choices": [2.0]},
        "losses.distill": {"choices": [1.0, 3e38]},  # that trial fails
    },
    "trial": SHORT,
    "algorithm": "grid",
    "scheduler": "none",
    "pilots": 1,
}
TRIALS = 3
"""Of either; of the grid the pilot, with the run's own values, and two points."""


@pytest.fixture(scope="module")
def swept(
    tiny: dict[str, Any], write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a sweep that is over; it was killed when its pilots were, and went on."""
    folder = tmp_path_factory.mktemp("swept")
    write(folder, search=SEARCH, training=tiny["training"] | HALF)
    _goes_on(folder, signal.SIGKILL, trials=2)
    return folder


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGKILL])
def resumed(
    request: pytest.FixtureRequest,
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a sweep that was stopped or killed after its first trial, and went on."""
    folder = tmp_path_factory.mktemp("resumed")
    write(folder, search=GRID)
    _goes_on(folder, request.param, trials=1)
    return folder


def _goes_on(folder: Path, number: signal.Signals, trials: int) -> None:
    """Run the sweep, end it by a signal when so many trials are over, and run it to its end: those
    trials are kept."""
    arguments = ("tune", "--config", folder / "run.yaml", "--output", folder / "out", "--resume")
    _stop_behind(folder, arguments, number, trials)
    before = _seconds(folder)
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert len(before) == trials and _seconds(folder).items() >= before.items()


def _stop_behind(
    folder: Path, arguments: tuple[str | Path, ...], number: signal.Signals, trials: int
) -> None:
    over = folder / "out" / "trials"
    with start(*map(str, arguments)) as process:
        try:
            _wait(lambda: [*over.glob("*/trial.json")][trials - 1 :])
            process.send_signal(number)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    if number == signal.SIGTERM:
        assert process.returncode == 4 and "--resume goes on" in err.splitlines()[-1], err


@pytest.mark.exhaustive
def test_a_trial_whose_process_dies_is_recorded_and_ends_nothing(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ("tune", "--config", write(tmp_path, search=GRID), "--output", tmp_path / "out")
    with start(*arguments) as process:
        try:
            _wait_for(tmp_path / "out" / "trials", "*/trial.json")
            _wait(lambda: _running(tmp_path / "out" / "trials"))
            own = [p for p in psutil.Process(process.pid).children(recursive=True) if _is_trial(p)]
            assert own
            for each in own:
                each.kill()
            _, err = process.communicate(timeout=180)
        finally:
            process.kill()
    assert process.returncode == 0, err
    dead = [record for record in Folder(tmp_path / "out").records() if record.why == DIED]
    assert dead and not any(
        [*Path(tempfile.gettempdir()).glob(f"dfka-{record.name}*")] for record in dead
    )


def _is_trial(process: psutil.Process) -> bool:
    with suppress(psutil.Error, IndexError):
        return process.cmdline()[0].startswith("ray::ResourceTrainable")  # as Ray Tune calls it
    return False


def _running(place: Path) -> list[Path]:
    """Trials that are on their way."""
    return [path for path in place.glob("*/running") if not (path.parent / "trial.json").exists()]


def _wait_for(place: Path, pattern: str) -> None:
    _wait(lambda: [*place.glob(pattern)])


def _wait(found: Callable[[], Sequence[Path]]) -> None:
    for _ in range(1200):
        if found():
            return
        time.sleep(0.2)
    raise AssertionError("nothing came")


def _seconds(folder: Path) -> dict[str, float]:
    """How long each trial took, by its folder."""
    records = Folder(folder / "out").records()
    return {record.name: record.seconds for record in records}


def _rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "out" / "trials.parquet").to_pylist()
    return found


@pytest.fixture(scope="module")
def trials(swept: Path) -> list[dict[str, Any]]:
    return _rows(swept)


def test_a_sweep_has_its_pilots_and_the_trials_that_were_drawn(
    trials: list[dict[str, Any]],
) -> None:
    assert sorted(row["trial"] for row in trials) == list(range(TRIALS))
    assert sum(row["pilot"] for row in trials) == 2
    assert len({row["losses.batch_norm"] for row in trials}) == TRIALS


def test_trials_are_judged_at_their_moments_and_at_their_end(trials: list[dict[str, Any]]) -> None:
    (drawn,) = (row for row in trials if not row["pilot"])  # nobody was there before it
    assert drawn["status"] == "finished" and len(drawn["moments"]) == 4 + 1


def test_trials_run_at_once(trials: list[dict[str, Any]]) -> None:
    first, second = sorted((row for row in trials if row["pilot"]), key=lambda row: row["ended"])
    assert second["ended"] - second["seconds"] < first["ended"]


def test_trials_leave_nothing_that_runs(swept: Path, trials: list[dict[str, Any]]) -> None:
    folder, temporary = Folder(swept / "out"), Path(tempfile.gettempdir())
    assert not any(folder.is_running(row["name"]) for row in trials)
    assert not any([*temporary.glob(f"dfka-{row['name']}*")] for row in trials)
    assert folder.elapsed >= max(row["ended"] for row in trials)


@pytest.mark.exhaustive
def test_a_sweep_goes_on_with_the_trials_that_are_over(resumed: Path) -> None:
    assert sorted(row["trial"] for row in _rows(resumed)) == list(range(TRIALS))


@pytest.mark.exhaustive
def test_a_trial_that_fails_is_recorded_and_ends_nothing(resumed: Path) -> None:
    (failed,) = (row for row in _rows(resumed) if row["status"] == "failed")
    assert failed["losses.distill"] == 3e38 and "not finite" in failed["why"]


def test_the_best_agrees_most(trials: list[dict[str, Any]]) -> None:
    agreements = [row["agreement"] for row in trials if row["status"] == "finished"]
    assert agreements == sorted(agreements, reverse=True) and trials[0]["rank"] == 0


def test_the_true_score_stands_beside(swept: Path, trials: list[dict[str, Any]]) -> None:
    assert all(row["accuracy"] is not None for row in trials if row["status"] == "finished")
    said = json.loads((swept / "out" / "result.json").read_text("utf-8"))
    assert (said["best"], said["trials"], said["finished"]) == (trials[0], TRIALS, TRIALS)


def test_the_rank_correlation_with_the_true_score_is_kept(swept: Path) -> None:
    said = json.loads((swept / "out" / "result.json").read_text("utf-8"))
    assert said["spearman"].keys() == {"accuracy", "mAP"}
    assert all(-1 <= value <= 1 for value in said["spearman"].values())


def test_the_best_run_runs_as_it_is(
    call: Callable[..., Ended], swept: Path, trials: list[dict[str, Any]]
) -> None:
    best = load(swept / "out" / "best.yaml")
    assert best.losses.batch_norm == trials[0]["losses.batch_norm"]
    assert best.training == load(swept / "run.yaml").training
    assert call("amalgamate", "--config", swept / "out" / "best.yaml", "--dry-run").code == 0


@pytest.mark.exhaustive
def test_the_best_run_runs(swept: Path, tmp_path: Path) -> None:
    ended = run(
        "amalgamate", "--config", swept / "out" / "best.yaml", "--output", tmp_path / "best"
    )
    assert ended.code == 0, ended.err
    assert (tmp_path / "best" / "target_net" / "model.safetensors").exists()


def test_the_page_shows_every_trial(swept: Path, trials: list[dict[str, Any]]) -> None:
    page = (swept / "out" / "sweep.html").read_text("utf-8")
    assert page.count("<svg") == 2 and page.count("<td>finished") == TRIALS
    assert not re.search(r"""(src|href)=["']?http""", page)


def test_a_finished_trials_network_is_kept(swept: Path, trials: list[dict[str, Any]]) -> None:
    place = swept / "out" / "trials" / trials[0]["name"] / "target_net"
    assert TargetNet.from_pretrained(place).labels == ["0", "1", "2", "3"]


def test_a_sweep_of_another_space_does_not_go_on(call: Callable[..., Ended], swept: Path) -> None:
    path = swept / "other.yaml"
    tree = yaml.safe_load((swept / "run.yaml").read_text("utf-8"))
    tree["search"]["space"]["losses.batch_norm"] = {"log": [0.1, 10]}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    refusal = call("tune", "--config", path, "--output", swept / "out", "--resume").refusal
    assert refusal.startswith("error: search.space.losses.batch_norm.log")


def test_a_sweep_that_is_over_has_nothing_left_to_do(
    call: Callable[..., Ended], swept: Path, tmp_path: Path
) -> None:
    storage, copy = tmp_path / "storage", tmp_path / "storage" / "tiny-sweep" / "result"
    stored = (f"training.checkpoint.storage={storage}", "training.checkpoint.shared=true")
    sets = [a for change in stored for a in ("--set", change)]
    given = ("tune", "--config", swept / "run.yaml", *sets, "--resume", "--output")
    over = f"this sweep is over: {swept / 'out' / 'sweep.html'}\n"
    assert call(*given, swept / "out").out == f"{over}copied:  {copy}\n"
    assert call(*given, swept / "out").out == over
    assert call(*given, tmp_path / "elsewhere").out == f"this sweep is over: {copy}\n"
    assert (copy / "sweep.html").exists() and not (tmp_path / "elsewhere").exists()
    other = "search.space={losses.group: {choices: [1.0]}}"
    refusal = call(*given, tmp_path / "elsewhere", "--set", other).refusal
    assert refusal.startswith("error: search.space.")


def test_a_sweep_is_not_written_over(call: Callable[..., Ended], swept: Path) -> None:
    refusal = call("tune", "--config", swept / "run.yaml", "--output", swept / "out").refusal
    assert "already holds a run (another folder, --resume, or --overwrite)" in refusal


def test_a_sweep_does_not_go_on_in_the_folder_of_a_run(
    call: Callable[..., Ended], swept: Path, tmp_path: Path
) -> None:
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    config = swept / "run.yaml"
    refusal = call("tune", "--config", config, "--output", tmp_path, "--resume").refusal
    assert refusal == f"error: --output: {tmp_path} holds a run and no sweep (another folder)"


@pytest.mark.parametrize("text", ['{"run": {"se', "", "[]"])
def test_a_sweep_whose_own_file_is_broken_is_refused_by_its_name(
    call: Callable[..., Ended], write: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    config, before = write(tmp_path, search=SEARCH), traces()
    place = tmp_path / "out" / "sweep.json"
    place.parent.mkdir()
    place.write_text(text, encoding="utf-8")
    refusal = call("tune", "--config", config, "--output", place.parent, "--resume").refusal
    assert refusal.startswith(f"error: --resume: {place} cannot be read: ")
    assert [*place.parent.iterdir()] == [place] and traces() == before


def test_a_dry_run_says_how_many_trials_run_at_once(
    call: Callable[..., Ended], write: Callable[..., Path], tmp_path: Path
) -> None:
    own = {key: value for key, value in SEARCH.items() if key != "concurrent"}
    config, nodes = write(tmp_path, search=own), tmp_path / "nodes.yaml"
    nodes.write_text("[{name: a, cpus: 4}, {name: b, cpus: 4}]", encoding="utf-8")
    given = ("tune", "--config", config, "--dry-run", "--nodes", nodes)
    ended = call(*given)
    assert "trials at once beside the teachers: 7 (workers of each: 1, of 1 CPU" in ended.out
    refusal = call(*given, "--set", "search.concurrent=8").refusal
    assert refusal.startswith("error: search.concurrent: 8 do not fit; ")


@pytest.mark.parametrize(
    ("search", "what"),
    [
        ({"trial": {"target.backbone": "nowhere:network"}}, "target.backbone .*nowhere"),
        ({"space": {"target.branch": {"choices": ["last", 9]}}}, "target.branch .*9"),
        ({"trial": {"training.recipe": "distill", "training.images": "folder:x"}}, ".*/x"),
    ],
)
def test_what_no_trial_can_be_made_of_is_refused(
    call: Callable[..., Ended],
    write: Callable[..., Path],
    tmp_path: Path,
    search: dict[str, Any],
    what: str,
) -> None:
    config = write(tmp_path, search=SEARCH | search)
    refusal = call("tune", "--config", config, "--output", tmp_path / "out").refusal
    assert re.match(f"error: search: {what}", refusal)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_archive_is_written_can_be_searched(
    call: Callable[..., Ended], write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "images-00000.parquet").write_bytes(b"")
    archive = f"training.archive={tmp_path / 'archive'}"
    given = ("--config", write(tmp_path, search=GRID), "--set", archive, "--dry-run")
    assert call("tune", *given).code == 0
    assert call("amalgamate", *given).code == 2


def test_a_run_without_a_search_is_refused(call: Callable[..., Ended], config: Path) -> None:
    assert call("tune", "--config", config).refusal.startswith("error: search: is missing ")
