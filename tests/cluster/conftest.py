"""One cluster for all tests, and one run that nothing disturbs."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
    ended = job.end()
    assert ended.code == 0, ended.err
    return job
