"""What all jobs share: their arguments, their exit codes, and one line when something is wrong."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from dfka_dist import commandline
from dfka_dist.config import PRESETS, RunConfig
from dfka_dist.errors import DfkaError, InputError, Interrupted, RunFailed
from dfka_dist.loading import load

MARKS = ("result.json", "target_net")
DIGITS = str(PRESETS / "digits.yaml")
Main = Callable[[Sequence[str] | None], None]


def job(argv: Sequence[str] | None) -> None:
    """A job that checks all that the user said, and then makes its folder."""
    arguments = commandline.parser("A job.").parse_args(argv)
    config = commandline.configuration(arguments)
    folder = commandline.output_folder(arguments, config, MARKS)
    if not arguments.dry_run:
        commandline.emptied(folder)


def failing(error: BaseException) -> Main:
    def main(argv: Sequence[str] | None) -> None:
        raise error

    return main


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    return err.rstrip("\n")


@pytest.fixture(autouse=True)
def _own_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def config() -> RunConfig:
    return load(DIGITS)


def arguments(*argv: str) -> argparse.Namespace:
    return commandline.parser("A job.").parse_args(["--config", DIGITS, *argv])


def refused(config: RunConfig, *argv: str) -> InputError:
    with pytest.raises(InputError) as caught:
        commandline.output_folder(arguments(*argv), config, MARKS)
    return caught.value


# exit codes


def test_a_job_that_is_done_exits_with_0() -> None:
    assert commandline.guarded(job)(["--config", DIGITS, "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a.b", "is 3", "1 to 2"), 2),
        (RunFailed("the workers failed"), 3),
        (DfkaError("something"), 3),
        (Interrupted("stopped with a checkpoint"), 4),
        (KeyboardInterrupt(), 4),
        (ValueError("unforeseen"), 3),
        (MemoryError(), 3),
        (AssertionError("ours"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_has_its_exit_code_and_one_line(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commandline.guarded(failing(error))([]) == code
    assert said(capsys).startswith("error: ")


def test_wrong_input_is_said_by_key_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    commandline.guarded(failing(InputError("a.b", "is 3", "1 to 2")))([])
    assert said(capsys) == "error: a.b: is 3 (1 to 2)"


def test_a_failure_of_many_lines_is_said_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    commandline.guarded(failing(RunFailed("first\nsecond\r\n\tthird")))([])
    assert said(capsys).startswith("error: first second third (")


def test_an_unforeseen_failure_is_said_by_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    commandline.guarded(failing(ZeroDivisionError("by zero")))([])
    assert said(capsys).startswith("error: ZeroDivisionError: by zero (")


def test_what_fails_before_there_is_a_folder_has_a_log_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commandline.guarded(failing(ZeroDivisionError("by zero")))([])
    place = re.search(r"the log is (.*)\)$", said(capsys))
    assert place is not None
    assert "in main\n" in Path(place[1]).read_text()


def test_what_fails_where_nothing_can_be_written_is_said_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/x")
    assert commandline.guarded(failing(ZeroDivisionError("by zero")))([]) == 3
    assert said(capsys).startswith("error: ZeroDivisionError: by zero (the log is nowhere")


# signals


@pytest.fixture
def _ctrl_c_is_heard() -> Iterator[None]:
    """Tests in the background ignore it."""
    before = signal.signal(SIGINT, signal.default_int_handler)
    yield
    signal.signal(SIGINT, before)


def patient(*numbers: signal.Signals, after: Sequence[signal.Signals] = ()) -> Main:
    """A job that is told to stop while it can keep itself, and then while it ends."""

    def main(argv: Sequence[str] | None) -> None:
        with commandline.patient() as asked:
            for number in numbers:
                signal.raise_signal(number)
        for number in after:
            signal.raise_signal(number)
        raise Interrupted("kept" if asked() else "never asked")

    return main


@pytest.mark.parametrize(
    ("numbers", "after", "line"),
    [
        ([], [], "never asked"),
        ([SIGINT], [], "kept"),
        ([SIGTERM, SIGTERM, SIGINT, SIGTERM], [], "kept"),
        ([SIGINT, SIGINT], [], "stopped"),
        ([SIGTERM], [SIGTERM, SIGTERM], "kept"),
        ([SIGTERM], [SIGINT], "stopped"),
        ([], [SIGTERM], "stopped"),
    ],
)
@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_only_a_second_ctrl_c_ends_a_job_that_keeps_itself_at_once(
    numbers: list[signal.Signals],
    after: list[signal.Signals],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(SIGTERM)
    assert commandline.guarded(patient(*numbers, after=after))([]) == 4
    assert said(capsys) == f"error: {line}"
    assert signal.getsignal(SIGTERM) == before


def test_a_second_sigterm_does_not_disturb_what_is_being_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = []

    def main(argv: Sequence[str] | None) -> None:
        try:
            signal.raise_signal(SIGTERM)
        finally:
            signal.raise_signal(SIGTERM)
            stopped.append("everything")

    assert commandline.guarded(main)([]) == 4
    assert (said(capsys), stopped) == ("error: stopped", ["everything"])


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        ([], "error: arguments: "),
        (["--config"], "error: arguments: "),
        (["--config", DIGITS, "--frobnicate"], "error: arguments: "),
        (["--config", DIGITS, "--overwrit"], "error: arguments: "),
        (["--config", "none.yaml"], "error: --config: none.yaml does not exist"),
        (["--config", DIGITS, "--set", "training.stepz=1"], "error: training.stepz: unknown key"),
        (["--config", DIGITS, "--set", "training.steps=0"], "error: training.steps: "),
        (["--config", DIGITS, "--set", "training"], "error: --set: "),
        (["--config", DIGITS, "--output", "/dev/null"], "error: --output: "),
        (["--config", DIGITS, "--output", "/dev/null/x"], "error: --output: "),
    ],
)
def test_wrong_arguments_exit_with_2_and_one_line_and_write_nothing(
    argv: list[str], begins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commandline.guarded(job)(argv) == 2
    assert said(capsys).startswith(begins)
    assert list(tmp_path.iterdir()) == []


def test_help_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commandline.guarded(job)(["--help"])
    assert caught.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


# arguments


def test_assignments_of_the_command_line_come_after_the_file() -> None:
    given = arguments("--set", "training.steps=7", "--set", "run.seed=5")
    config = commandline.configuration(given)
    assert (config.training.steps, config.run.seed) == (7, 5)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_folder_whose_name_cannot_be_is_refused(config: RunConfig, name: str) -> None:
    assert refused(config, "--output", name).key == "--output"


# the output folder


def test_results_go_to_runs_and_the_name_unless_told_otherwise(
    config: RunConfig, tmp_path: Path
) -> None:
    assert commandline.output_folder(arguments(), config, MARKS) == tmp_path / "runs" / "digits"


def test_results_go_where_they_are_told(config: RunConfig, tmp_path: Path) -> None:
    assert (
        commandline.output_folder(arguments("--output", "x/y"), config, MARKS) == tmp_path / "x/y"
    )


def test_asking_for_the_folder_does_not_make_it(config: RunConfig, tmp_path: Path) -> None:
    commandline.output_folder(arguments(), config, MARKS)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_used(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert commandline.output_folder(arguments("--output", "x"), config, MARKS) == tmp_path / "x"


def test_a_file_in_place_of_the_folder_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    assert refused(config, "--output", "x").what.endswith("is a file")


@pytest.mark.parametrize("mark", MARKS)
def test_a_folder_that_holds_a_run_is_refused(config: RunConfig, tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).write_text("")
    assert "already holds a run" in refused(config, "--output", ".").what


def test_a_folder_that_holds_a_run_may_be_overwritten_on_request(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "result.json").write_text("{}")
    given = arguments("--output", ".", "--overwrite")
    assert commandline.output_folder(given, config, MARKS) == tmp_path


def test_a_folder_with_other_files_is_never_overwritten(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "files that are no run's" in refused(config, "--output", ".", "--overwrite").what


def test_emptying_makes_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert commandline.emptied(tmp_path / "a" / "b", MARKS).is_dir()


def test_emptying_leaves_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "target_net").mkdir()
    (tmp_path / "target_net" / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text("{}")
    assert list(commandline.emptied(tmp_path, MARKS).iterdir()) == []


def test_emptying_leaves_what_no_run_made(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert list(commandline.emptied(tmp_path, MARKS).iterdir()) == [tmp_path / "thesis.tex"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--output: .* cannot be written"):
        commandline.emptied(tmp_path / "file" / "inside", MARKS)


@pytest.mark.parametrize("name", ["new", "new/below", "."])
def test_a_folder_that_could_be_written_is_not_made(tmp_path: Path, name: str) -> None:
    commandline.refuse_unwritable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--output: .* cannot be written"):
        commandline.refuse_unwritable(Path("/proc/x"))


# the log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    level = root.level
    handler = commandline.log_to(tmp_path)
    yield tmp_path / "run.log"
    root.removeHandler(handler)
    root.setLevel(level)
    handler.close()


def test_what_is_logged_is_in_the_folder(log: Path) -> None:
    logging.getLogger("dfka_dist.anywhere").info("something happened")
    assert "INFO dfka_dist.anywhere: something happened" in log.read_text()


def test_a_failed_run_says_where_its_log_is(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commandline.guarded(failing(RunFailed("the workers failed")))([])
    assert said(capsys) == f"error: the workers failed (the log is {log})"


def test_the_log_of_a_failed_run_has_the_traceback(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commandline.guarded(failing(ZeroDivisionError("by zero")))([])
    assert "in failing" in log.read_text() or "in main" in log.read_text()


def test_a_failure_that_says_very_much_is_cut_short_before_the_log_is_named(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commandline.guarded(failing(RunFailed("x" * 5000)))([])
    line = said(capsys)
    assert len(line) < 400 + len(str(log))
    assert line.endswith(f"(the log is {log})")
