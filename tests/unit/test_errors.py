"""What a user reads when something is wrong, and what the program ends with."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfka_dist.errors import (
    DfkaError,
    InputError,
    Interrupted,
    NonFiniteLoss,
    NoRoom,
    RunFailed,
    TeacherUnavailable,
    some,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("k", "w", "r"), 2),
        (RunFailed("x"), 3),
        (NoRoom("x"), 3),
        (TeacherUnavailable("x"), 3),
        (NonFiniteLoss("x"), 3),
        (DfkaError("x"), 3),
        (Interrupted("x"), 4),
    ],
)
def test_every_error_has_its_exit_code(error: DfkaError, code: int) -> None:
    assert error.exit_code == code


def test_wrong_input_names_the_key_what_is_wrong_and_what_would_be_right() -> None:
    assert str(InputError("a.b", "is 3", "1 to 2")) == "a.b: is 3 (1 to 2)"


@given(key=st.text(), what=st.text(), remedy=st.text())
def test_wrong_input_is_one_line_whatever_it_quotes(key: str, what: str, remedy: str) -> None:
    assert len(str(InputError(key, what, remedy)).splitlines()) == 1


def test_wrong_input_survives_the_way_between_processes() -> None:
    again = pickle.loads(pickle.dumps(InputError("a.b", "is 3", "1 to 2")))
    assert (again.key, again.what, again.remedy) == ("a.b", "is 3", "1 to 2")


def test_of_many_names_a_line_holds_twenty() -> None:
    assert some(range(20)) == ", ".join(map(str, range(20)))
    assert some(range(1000)) == f"{some(range(20))}, ..."


def test_names_like_the_one_that_was_meant_come_first() -> None:
    names = [f"kind {index}" for index in range(999)] + ["crane"]
    assert some(names, "krane").startswith("crane, kind 0, kind 1, ")
    assert some(["owl", "cat", "dog"], "dgo") == "dog, owl, cat"
    assert some(["owl", "cat"], "horse") == "owl, cat"
