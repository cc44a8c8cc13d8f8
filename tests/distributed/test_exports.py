"""The names that the package promises; some of them load Ray or DeepSpeed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dfka_dist


@pytest.mark.parametrize("name", dfka_dist.__all__)
def test_every_promised_name_can_be_imported(name: str) -> None:
    code = f"from dfka_dist import {name}; print({name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [name], done.stderr
