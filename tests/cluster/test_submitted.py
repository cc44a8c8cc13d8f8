"""`ray job submit` as the README has it, to a cluster that asks for its token."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from cluster import PATIENCE, Cluster, Ended, wait_for
from network import Node

RAY_JOB = (sys.executable, "-m", "ray.scripts.scripts", "job")
UPLOAD = ("--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml")
RUN = ("python", "jobs/amalgamate.py", "--config", "jobs/presets/digits.yaml", "--resume")
SEARCH = ("python", "jobs/tune.py", "--config", "jobs/presets/digits-search.yaml", "--resume")
NO_ADDRESS: dict[str, Any] = {"run.address": None}
"""A submitted job finds its cluster."""
EXIT_CODE = "print(JobSubmissionClient().get_job_info({id!r}).driver_exit_code)"
PROGRESS = re.compile(r"\w+: (starting |begins at |joint  \d+/\d+  |stopping with a checkpoint)")


def called(
    nodes: Cluster, *words: str, node: Node | None = None, env: Mapping[str, str] = {}
) -> Ended:
    """A command that is over, on the head or another node."""
    done = subprocess.run(
        (node or nodes.head).command(*words),
        env=nodes.env | {"RAY_ADDRESS": nodes.dashboard} | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def submitted(
    nodes: Cluster, *more: str, job: Sequence[str] = RUN, env: Mapping[str, str] = {}
) -> Ended:
    """A job that is over, submitted from the head."""
    return called(nodes, *RAY_JOB, "submit", *UPLOAD, "--", *job, *more, env=env)


def test_a_submitted_job_shows_its_progress_and_leaves_its_result_in_the_storage(
    nodes: Cluster,
) -> None:
    ended = submitted(nodes, *nodes.settings("submitted", NO_ADDRESS))
    assert ended.code == 0, ended.out + ended.err
    assert "joint  24/24" in ended.out and "the teachers side by side" in ended.out
    assert "copied:  s3://bucket/runs/submitted/result\n" in ended.out
    assert nodes.store.paths("runs/submitted/checkpoint-000000036")
    names = ("result.json", "report.html", "run.log", "samples.png", "target_net/model.safetensors")
    left = {f"bucket/runs/submitted/result/{name}" for name in names}
    assert left <= {*nodes.store.paths("runs/submitted/result")}
    assert nodes.left(killed=True) == []


def kept(nodes: Cluster) -> bool:
    return any("/checkpoint-" in path for path in nodes.store.paths("runs/elsewhere"))


@pytest.mark.exhaustive
def test_a_job_from_another_node_is_followed_and_stopped_with_a_checkpoint(nodes: Cluster) -> None:
    """Whatever the head was started with: how long it waits is in the job's environment."""
    node, own = nodes.nodes[2], ("--submission-id", "elsewhere")
    more = nodes.settings("elsewhere", NO_ADDRESS | {"training.steps": 100_000})
    begun = called(
        nodes, *RAY_JOB, "submit", "--no-wait", *own, *UPLOAD, "--", *RUN, *more, node=node
    )
    assert begun.code == 0, begun.out + begun.err
    following = node.start(
        *(*RAY_JOB, "logs", "--follow", "elsewhere"),
        env=nodes.env | {"RAY_ADDRESS": nodes.dashboard},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: kept(nodes), "a checkpoint")
    stopped = called(nodes, *RAY_JOB, "stop", "elsewhere", node=node)
    out, err = following.communicate(timeout=60)
    assert stopped.code == 0, stopped.out + stopped.err
    lines = out.splitlines()
    (made,) = [
        re.search(r"^error: stopped with a checkpoint at step (\d+);", line)
        for line in lines
        if line.startswith("error: ")
    ]
    assert made is not None, out
    assert nodes.store.paths(f"runs/elsewhere/checkpoint-{int(made[1]):09}")
    begin = next(n for n, line in enumerate(lines) if line.startswith("elsewhere: "))
    end = next(n for n, line in enumerate(lines) if line.startswith("error: "))
    assert [line for line in lines[begin:end] if not PROGRESS.match(line)] == []
    assert "was stopped" in out + err
    assert nodes.left(killed=True) == []


@pytest.mark.exhaustive
def test_a_submitted_search_runs_trials_at_once_and_leaves_nothing(nodes: Cluster) -> None:
    short = "search.trial={training.steps: 8, training.rehearsal_steps: 0}"
    budget = ("search.trials=6", "search.seconds=null", "search.pilots=2")
    sets = [a for change in (short, *budget) for a in ("--set", change)]
    small = {"training.workers": 1, "training.worker_cpus": 1}
    ended = submitted(nodes, *nodes.settings("search", NO_ADDRESS | small), *sets, job=SEARCH)
    assert ended.code == 0, ended.out + ended.err
    assert most_at_once(ended.out) > 1
    assert (
        ended.out.count(" finished ") + ended.out.count(" stopped ") == 6
        and "best: losses.batch_norm " in ended.out
    )
    left = {f"bucket/runs/search-sweep/result/{name}" for name in ("best.yaml", "sweep.html")}
    assert left <= {*nodes.store.paths("runs/search-sweep/result")}
    assert nodes.left(killed=True) == []


def most_at_once(out: str) -> int:
    """Trials that ran at the same time, as the sweep has told of them."""
    running: set[str] = set()
    most = 0
    for name, status in re.findall(r"^search sweep: (\S+) (running|finished|stopped) ", out, re.M):
        running = running | {name} if status == "running" else running - {name}
        most = max(most, len(running))
    return most


def test_a_submitted_job_that_is_refused_ends_with_code_1_and_tells_its_own(nodes: Cluster) -> None:
    ended = submitted(nodes, "--set", "training.stepz=3")
    assert ended.code == 1, "that of ray job submit for a job that failed"
    assert "error: training.stepz: unknown key (did you mean 'steps'?)" in ended.out
    assert "Job entrypoint command failed with exit code 2" in ended.out
    submission = re.search(r"raysubmit_\w+", ended.out)
    assert submission is not None
    asked = f"from ray.job_submission import *; {EXIT_CODE.format(id=submission[0])}"
    assert called(nodes, sys.executable, "-c", asked).out.splitlines()[-1] == "2"


def test_without_the_token_nothing_is_submitted(nodes: Cluster) -> None:
    ended = submitted(nodes, env={"RAY_AUTH_TOKEN": "b" * 64})
    assert ended.code != 0 and "oken" in ended.out + ended.err


@pytest.mark.exhaustive
@pytest.mark.parametrize("address", ["auto", None])
def test_a_job_on_a_node_that_has_not_the_token_is_refused(
    nodes: Cluster, address: str | None
) -> None:
    where = nodes.address if address is None else address
    more = nodes.settings("strange", {"run.address": where})
    wrong = {"RAY_AUTH_TOKEN": "b" * 64, "RAY_ADDRESS": ""}
    ended = called(nodes, sys.executable, *RUN[1:], *more, env=wrong)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert ended.err.startswith("error: run.address: the Ray cluster at ")
