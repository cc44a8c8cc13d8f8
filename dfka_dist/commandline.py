"""What all jobs share: arguments, exit codes, and one line on stderr when something is wrong."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dfka_dist.config import RunConfig
from dfka_dist.errors import DfkaError, InputError, Interrupted
from dfka_dist.folders import is_writable, nearest
from dfka_dist.loading import load
from dfka_dist.models import completion


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError("arguments", message, f"{self.prog} --help lists them")


def parser(
    description: str, output: str = "default: runs/NAME", *, needs_config: bool = True
) -> argparse.ArgumentParser:
    """The arguments that every job takes; their values are on the result of `parse_args`.

    Args:
        output: what happens without `--output`.
        needs_config: whether `--config` may not be left out.
    """
    made = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--config", required=needs_config, type=Path, metavar="FILE", help="the run, as YAML"
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one value; dotted key, YAML value",
    )
    made.add_argument("--output", type=Path, metavar="DIR", help=f"where results go ({output})")
    made.add_argument(
        "--overwrite", action="store_true", help="replace the run that the output folder holds"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="print what would happen; start and write nothing"
    )
    return made


def add_nodes_and_resume(made: argparse.ArgumentParser, resume: str) -> None:
    """What jobs take that plan servers and workers, and that go on.

    Args:
        resume: what `--resume` does.
    """
    made.add_argument(
        "--nodes",
        type=Path,
        metavar="FILE",
        help="plan a --dry-run for these nodes: YAML, a list of {name, cpus, gpus, gpu_gigabytes, "
        "labels}",
    )
    made.add_argument("--resume", action="store_true", help=resume)


def refuse_misfits(arguments: argparse.Namespace) -> None:
    """Look at what `add_nodes_and_resume` added.

    Raises:
        InputError: arguments do not go together.
    """
    if arguments.resume and arguments.overwrite:
        raise InputError("--resume", "goes on with what --overwrite replaces", "one of the two")
    if arguments.nodes and not arguments.dry_run:
        raise InputError("--nodes", "is for planning alone", "--dry-run beside it")


def positive(text: str) -> int:
    """A whole number from 1, for `type` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """The run that the arguments describe.

    Raises:
        InputError: it is wrong.
    """
    return load(arguments.config, arguments.set, completion.complete)


def output_folder(arguments: argparse.Namespace, config: RunConfig, marks: Collection[str]) -> Path:
    """Where results go; not created yet. A plan for other machines asks nothing of this one.

    Args:
        marks: any of these in a folder says that this job's results lie there.

    Raises:
        InputError: something stands there already, and it may neither be overwritten nor go on.
    """
    asked = arguments.output or Path("runs") / config.run.name
    try:
        folder = asked.resolve()
        if getattr(arguments, "nodes", None) is not None:
            return folder
        there = list(folder.iterdir()) if folder.exists() else []
    except NotADirectoryError:
        raise InputError("--output", f"{asked} is a file", "a folder") from None
    except (OSError, ValueError) as error:
        raise InputError("--output", f"{str(asked)[:60]!r}: {error}", "a folder") from error
    if not is_writable(folder):
        raise InputError("--output", f"{folder} cannot be made or written", "a writable folder")
    if not there:
        return folder
    if not any(place.name in marks for place in there):
        raise InputError(
            "--output", f"{folder} holds files that are no run's", "an empty or a new folder"
        )
    resumes = "resume" in arguments
    if not arguments.overwrite and not (resumes and arguments.resume):
        remedy = f"another folder, {'--resume, ' if resumes else ''}or --overwrite"
        raise InputError("--output", f"{folder} already holds a run", remedy)
    return folder


def refuse_unwritable(folder: Path) -> None:
    """Make sure that the folder can be made and written; nothing of it is left.

    Raises:
        InputError: it cannot.
    """
    try:
        with tempfile.TemporaryDirectory(dir=nearest(folder), prefix=".dfka-"):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def emptied(folder: Path, names: Collection[str]) -> Path:
    """The folder, made if it is not there, without an earlier run's results; nothing else goes.

    Raises:
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in [folder / name for name in names]:
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> InputError:
    what = f"{folder} cannot be written: {error.strerror}"
    return InputError("--output", what, "a writable folder")


def log_to(folder: Path) -> logging.Handler:
    """Send the log of this process to `folder/run.log`; what finds no room there is lost, and the
    process goes on."""
    logging.raiseExceptions = False  # which would print a traceback
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


def guarded(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Turn a job's `main` into one that returns its exit code and says what was wrong in one line.

    0 done, 2 the input is wrong, 3 the run failed, 4 stopped.
    """

    def run(argv: Sequence[str] | None = None) -> int:
        try:
            with _terminable():
                main(argv)
        except KeyboardInterrupt:
            return _say(Interrupted("stopped"), None)
        except DfkaError as error:
            return _say(error, error if error.exit_code == 3 else None)
        except Exception as error:  # the last line of defence: one line and a log, whatever it was
            return _say(DfkaError(f"{type(error).__name__}: {error}"), error)
        return 0

    return run


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does: what was started is stopped, nothing is left.

    Only the first one: clusters send several, and what is being stopped is not to be disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, _pass_over)
    signal.default_int_handler(number, frame)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """No SIG_IGN, which programs that are started meanwhile would have too."""


@contextlib.contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """Within, a signal only asks to stop; a second Ctrl-C ends the program at once, and a second
    SIGTERM changes nothing, here and afterwards.

    Gives whether it was asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked, pressed = threading.Event(), threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            if pressed.is_set():
                signal.default_int_handler(number, frame)
            pressed.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        done = _pass_over if asked.is_set() else before[signal.SIGTERM]
        signal.signal(signal.SIGTERM, done)


def _say(error: DfkaError, failure: Exception | None) -> int:
    line = " ".join(str(error).split())
    logs = [h.baseFilename for h in logging.getLogger().handlers if type(h) is logging.FileHandler]
    if failure is not None:
        story = "".join(traceback.format_exception(failure))
        if logs:
            logging.getLogger(__name__).error("%s", story)
            place = logs[-1]
        else:  # it failed before there was a folder
            place = _left_behind(story)
        line = f"{line[:300]} (the log is {place})"
    sys.stderr.write(f"error: {line}\n")
    return error.exit_code


def _left_behind(story: str) -> str:
    """Where a story lies now; `nowhere` if there is no place for it."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="dfka-", suffix=".log")
        os.close(descriptor)
        Path(name).write_text(story, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "nowhere: nothing can be written"
    return name
