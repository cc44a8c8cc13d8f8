"""What the package promises by name is there."""

from __future__ import annotations

import pytest

import dfka_dist


@pytest.mark.parametrize("name", dfka_dist._HOMES)
def test_every_name_that_is_exported_can_be_imported(name: str) -> None:
    assert getattr(dfka_dist, name).__name__ == name


def test_every_name_that_can_be_imported_is_exported() -> None:
    assert sorted([*dfka_dist._HOMES, "__version__"]) == sorted(dfka_dist.__all__)
