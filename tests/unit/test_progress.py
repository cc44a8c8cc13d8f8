"""What a person sees of a run, in a file and on a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest

from dfka_dist.progress import Progress, clock


def record(step: int, seconds: float, phase: str = "joint", **more: Any) -> dict[str, Any]:
    return {
        "phase": phase,
        "step": step,
        "steps": 800,
        "seconds": seconds,
        "losses": {"one_hot": 0.125, "group": 0.5},
        "images_per_second": 400.0,
        **more,
    }


def plain(act: Callable[[Progress], None]) -> list[str]:
    stream = io.StringIO()
    with Progress(stream, "digits") as shown:
        act(shown)
    return stream.getvalue().splitlines()


def steps_of(lines: list[str]) -> list[str]:
    return [match for line in lines for match in re.findall(r"\d+/\d+", line)]


def test_clock_shows_hours_only_when_there_are_any() -> None:
    assert [clock(65), clock(3725)] == ["1:05", "1:02:05"]


def test_a_message_is_a_line() -> None:
    assert plain(lambda shown: shown.message("loading teachers")) == ["digits: loading teachers"]


def test_a_line_says_phase_step_rate_and_losses() -> None:
    assert plain(lambda shown: shown.update(record(10, 1.0))) == [
        "digits: joint  10/800  400 images/s  one_hot 0.125  group 0.5"
    ]


def test_time_left_follows_from_the_rate_in_this_phase() -> None:
    # 10 steps in 10 s, 600 steps to go.
    def act(shown: Progress) -> None:
        shown.update(record(190, 1000.0))
        shown.update(record(200, 1010.0))

    assert "10:00 left" in plain(act)[-1]


def test_time_left_forgets_the_phase_before() -> None:
    def act(shown: Progress) -> None:
        shown.update(record(10, 1000.0))
        shown.update(record(10, 1010.0, "fine_tune"))

    assert "left" not in plain(act)[-1]


def test_lines_come_about_every_ten_seconds() -> None:
    def act(shown: Progress) -> None:
        for step in range(1, 26):
            shown.update(record(step, float(step)))

    assert steps_of(plain(act)) == ["1/800", "11/800", "21/800", "25/800"]


def test_a_change_of_phase_is_shown_at_once() -> None:
    def act(shown: Progress) -> None:
        shown.update(record(10, 1.0))
        shown.update(record(20, 2.0))
        shown.update(record(1, 3.0, "fine_tune"))

    assert steps_of(plain(act)) == ["10/800", "20/800", "1/800"]


def test_the_end_of_a_phase_is_shown_at_once() -> None:
    def act(shown: Progress) -> None:
        shown.update(record(790, 1.0))
        shown.update(record(800, 2.0))
        shown.message("saving")

    assert steps_of(plain(act)) == ["790/800", "800/800"]


def test_a_run_that_fails_leaves_its_last_record() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError, match="boom"), Progress(stream, "digits") as shown:
        shown.update(record(10, 1.0))
        shown.update(record(20, 2.0))
        raise RuntimeError("boom")
    assert "20/800" in stream.getvalue()


def test_a_build_server_that_forces_colour_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert plain(lambda shown: shown.message("loading")) == ["digits: loading"]


class Terminal:
    """Both ends of a pseudo-terminal."""

    def __init__(self) -> None:
        self._outer, inner = os.openpty()
        self.stream: TextIO = os.fdopen(inner, "w")

    def text(self) -> str:
        """What has arrived so far."""
        self.stream.flush()
        os.set_blocking(self._outer, False)
        parts = []
        while True:
            try:
                parts.append(os.read(self._outer, 65536))
            except BlockingIOError:
                return b"".join(parts).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._outer)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    opened = Terminal()
    yield opened
    opened.close()


def test_a_terminal_gets_a_live_bar(terminal: Terminal) -> None:
    with Progress(terminal.stream, "digits") as shown:
        shown.update(record(400, 1.0))
    assert "━" in terminal.text()


def test_a_terminal_shows_messages_with_brackets_as_they_are(terminal: Terminal) -> None:
    with Progress(terminal.stream, "digits") as shown:
        shown.message("loading [low_digits]")
    assert "loading [low_digits]" in terminal.text()


def test_a_finished_phase_leaves_one_line_on_the_terminal(terminal: Terminal) -> None:
    with Progress(terminal.stream, "digits") as shown:
        shown.update(record(800, 1.0))
        shown.update(record(1, 2.0, "fine_tune"))
    assert terminal.text().count("digits: joint  800/800  400 images/s") == 1


def test_a_run_that_fails_leaves_on_the_terminal_what_it_was_doing(terminal: Terminal) -> None:
    with pytest.raises(RuntimeError, match="boom"), Progress(terminal.stream, "digits") as shown:
        shown.message("loading teachers")
        raise RuntimeError("boom")
    assert terminal.text().endswith("digits: loading teachers\r\n")


def test_a_run_that_fails_gets_its_cursor_back(terminal: Terminal) -> None:
    with pytest.raises(RuntimeError, match="boom"), Progress(terminal.stream, "digits") as shown:
        shown.update(record(10, 1.0))
        raise RuntimeError("boom")
    text = terminal.text()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Progress(terminal.stream, "digits") as shown:
        shown.message("loading")
    assert terminal.text() == "digits: loading\r\n"
