"""One cluster for all tests, and one run that nothing disturbs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Job, cluster
from network import missing


@pytest.fixture(scope="session")
def nodes() -> Iterator[Cluster]:
    lacking = missing()
    if lacking is not None:
        assert "CI" not in os.environ, f"CI must not pass over this: {lacking}"
        pytest.skip(lacking)
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def undisturbed(nodes: Cluster) -> Job:
    """A run that is over."""
    job = nodes.start("undisturbed")
    job.wait_for_step(5)
    assert nodes.near is not nodes.far, "all that workers say to each other crosses a wire"
    ended = job.end()
    assert ended.code == 0, ended.err
    assert nodes.left() == []
    return job


REPORT: list[dict[str, Any]] = []
"""A row for every test of this folder."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file, _, name = report.nodeid.partition("::")
    if report.when == "call" and "tests/cluster/" in file:
        words = name.removeprefix("test_").replace("_", " ")
        REPORT.append({"what": words, "holds": report.passed, "seconds": round(report.duration, 1)})


def pytest_sessionfinish(session: pytest.Session) -> None:
    place = session.config.getoption("--faults-report")
    if place is not None and REPORT:
        Path(place).write_text(json.dumps(REPORT, indent=2) + "\n", encoding="utf-8")
