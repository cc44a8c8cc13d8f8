"""`ray job submit` as the README has it, to a cluster that asks for its token."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
from cluster import PATIENCE, Cluster, Ended

SUBMIT = (
    *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
    *("--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml", "--"),
)
RUN = ("python", "jobs/amalgamate.py", "--config", "jobs/presets/digits.yaml", "--resume")
SEARCH = ("python", "jobs/tune.py", "--config", "jobs/presets/digits-search.yaml", "--resume")


def submitted(
    nodes: Cluster, *more: str, job: Sequence[str] = RUN, env: Mapping[str, str] = {}
) -> Ended:
    """A job that is over, submitted from the head."""
    done = subprocess.run(
        nodes.head.command(*SUBMIT, *job, *more),
        env=nodes.env | {"RAY_ADDRESS": "http://127.0.0.1:8265"} | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_submitted_job_shows_its_progress_and_ends_with_its_result(nodes: Cluster) -> None:
    ended = submitted(nodes, *nodes.settings("submitted", {"run.address": "auto"}))
    assert ended.code == 0, ended.out + ended.err
    assert "joint  24/24" in ended.out and "the teachers side by side" in ended.out
    assert nodes.store.paths("runs/submitted/checkpoint-000000036")
    assert nodes.left(killed=True) == []


@pytest.mark.exhaustive
def test_a_submitted_search_runs_trials_at_once_and_leaves_nothing(nodes: Cluster) -> None:
    short = "search.trial={training.steps: 8, training.rehearsal_steps: 0}"
    budget = ("search.trials=6", "search.seconds=null", "search.pilots=2")
    sets = [a for change in (short, *budget) for a in ("--set", change)]
    more = [*nodes.settings("search", {"run.address": "auto"}), *sets]
    ended = submitted(nodes, *more, job=SEARCH)
    assert ended.code == 0, ended.out + ended.err
    assert (
        ended.out.count(" finished ") + ended.out.count(" stopped ") == 6
        and "best: losses.batch_norm " in ended.out
    )
    assert nodes.left(killed=True) == []


def test_a_submitted_job_that_is_refused_ends_with_code_1_and_its_one_line(nodes: Cluster) -> None:
    ended = submitted(nodes, "--set", "training.stepz=3")
    assert ended.code == 1, "that of ray job submit for a job that failed"
    assert "error: training.stepz: unknown key (did you mean 'steps'?)" in ended.out


def test_without_the_token_nothing_is_submitted(nodes: Cluster) -> None:
    ended = submitted(nodes, env={"RAY_AUTH_TOKEN": "b" * 64})
    assert ended.code != 0 and "oken" in ended.out + ended.err
