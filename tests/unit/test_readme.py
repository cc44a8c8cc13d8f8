"""What the README says of tests is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def promises() -> list[tuple[str, str]]:
    """Of the table of what happens when: what happened, and the tests that show what follows."""
    table = README.partition("| what happened | what follows | test |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(row[0], row[-1]) for row in rows]


@pytest.mark.parametrize(("what", "named"), promises())
def test_every_promise_has_its_tests(what: str, named: str) -> None:
    tests = re.findall(r"`([^`]+)`", named)
    assert tests and all((ROOT / "tests" / f"{test}.py").exists() for test in tests), what


def test_the_table_of_faults_is_what_their_report_says() -> None:
    report = json.loads((ROOT / "jobs" / "figures" / "faults.json").read_text("utf-8"))
    rows = [f"| {row['what']} | {row['seconds']:.0f} | {_held(row)} |" for row in report]
    assert "\n".join(rows) in README


def _held(row: dict[str, object]) -> str:
    return "yes" if row["holds"] else "no"
