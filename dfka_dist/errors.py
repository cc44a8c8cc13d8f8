"""The errors a user can meet, each with the exit code of a job; and what fits into their line."""

import difflib
from collections.abc import Iterable


class DfkaError(Exception):
    """Any failure that this package reports in one line."""

    exit_code = 3


class InputError(DfkaError):
    """The user's input is wrong; nothing was started and nothing was written.

    Deliberately no `ValueError`: pydantic lets it pass through unchanged.
    """

    exit_code = 2

    def __init__(self, key: str, what: str, remedy: str) -> None:
        super().__init__(key, what, remedy)
        self.key, self.what, self.remedy = key, what, remedy

    def __str__(self) -> str:
        line = f"{self.key}: {self.what} ({self.remedy})"
        return " ".join(line.split())


class RunFailed(DfkaError):
    """The run began and could not end."""


class NotKept(RunFailed):
    """A checkpoint could not be written; what was there before is as it was."""


class NoRoom(RunFailed):
    """No worker was there for as long as a run waits for one."""


class TeacherUnavailable(RunFailed):
    """No replica of a teacher is left, or none answered in time."""


class NonFiniteLoss(RunFailed):
    """A loss term became infinite or not a number; no rank took the step."""


class NonFiniteNetwork(RunFailed):
    """A parameter or buffer became infinite or not a number; no checkpoint holds it."""


class Interrupted(DfkaError):
    """The run was stopped by a signal or by preemption."""

    exit_code = 4


def some(names: Iterable[object], meant: str = "") -> str:
    """Names for one line: the first twenty, and before them those that look like what was meant."""
    known = [str(name) for name in names]
    near = difflib.get_close_matches(meant, known)
    shown = [*near, *(name for name in known if name not in near)]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
