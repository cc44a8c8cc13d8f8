"""The `Amalgamator` inside a Ray Train job: the only module that starts workers."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import yaml
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from dfka_dist import machine
from dfka_dist.config import RunConfig
from dfka_dist.errors import DfkaError, RunFailed
from dfka_dist.loading import dump, parse
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.silent import SilentTeachers
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.shelf import FolderShelf

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
PATIENCE = 15.0
"""Seconds that all workers have to end when one has told why."""


End = Outcome | DfkaError
"""How a run ended."""
Given = tuple[ServedTeachers | SilentTeachers, dict[str, torch.Tensor] | None, FolderShelf | None]
"""What workers are given: the teachers, the state of a target to go on with, and the place of their
checkpoints."""


class _Conductor:
    """Runs Ray Train, and keeps what rank 0 has to tell until the driver collects it.

    An actor beside the driver: in the driver Ray Train would take the signals, and die with the
    process instead of being left. One of its two threads belongs to `fit`.
    """

    def __init__(self) -> None:
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._end: End | None = None

    def fit(self, config: RunConfig, given: Given, storage: str) -> str | None:
        """Run the workers to their end; the whole story if they fail."""
        own = ray.get_runtime_context().current_actor
        try:
            _trainer(config, given, own, storage).fit()
        except Exception:  # the driver raises, and knows whether a worker has said more
            return traceback.format_exc()
        return None

    def post(self, record: Record) -> None:
        self._records.put(record)

    def end(self, end: End) -> None:
        self._end = self._end or end

    def collect(self) -> tuple[list[Record], End | None]:
        return [self._records.get() for _ in range(self._records.qsize())], self._end


class _Inbox:
    """A worker's way to the conductor; what is told arrives in the order in which it was told.

    Ray promises no order to an actor of several threads.
    """

    def __init__(self, conductor: Any) -> None:
        self._conductor = conductor
        self._told: Any = []

    def post(self, record: Record) -> None:
        ray.get(self._told)  # has long arrived
        self._told = self._conductor.post.remote(record)

    def end(self, end: End) -> None:
        ray.get(self._told)
        ray.get(self._conductor.end.remote(end))


def amalgamate(
    config: RunConfig,
    teachers: ServedTeachers | SilentTeachers,
    on_record: Callable[[Record], None],
    start: dict[str, torch.Tensor] | None = None,
    shelf: FolderShelf | None = None,
) -> Outcome:
    """Run the training workers and wait for what rank 0 returns.

    Workers that die are started again, `training.max_failures` times, and go on from the newest
    checkpoint.

    Args:
        on_record: called in this process with each record; with some again after a restart.
        start: state of a target to go on with.
        shelf: of the run's checkpoints.

    Raises:
        DfkaError: as it was raised in a worker; `RunFailed` for whatever else went wrong.
    """
    conductor = ray.remote(_Conductor).options(num_cpus=0, max_concurrency=2).remote()
    try:
        with tempfile.TemporaryDirectory(prefix="dfka-") as storage:
            running = conductor.fit.remote(config, (teachers, start, shelf), storage)
            return _watch(conductor, running, on_record)
    finally:
        ray.kill(conductor)  # and with it Ray Train's own actors, if they are still there


def _watch(conductor: Any, running: Any, on_record: Callable[[Record], None]) -> Outcome:
    over = False
    while not over:
        over = bool(ray.wait([running], timeout=POLL_SECONDS)[0])
        records, end = ray.get(conductor.collect.remote())
        for record in records:
            on_record(record)
        if isinstance(end, DfkaError):
            # The other workers have met the same, or wait for this one in vain.
            ray.wait([running], timeout=PATIENCE)
            raise end
    story: str | None = ray.get(running)
    if isinstance(end, Outcome):
        return end
    if story is not None:
        log.error("%s", story)
    reason = story.strip().splitlines()[-1] if story else "they ended without a result"
    raise RunFailed(f"the training workers failed: {reason}")


def _trainer(config: RunConfig, given: Given, conductor: Any, storage: str) -> TorchTrainer:
    return TorchTrainer(
        _work,
        train_loop_config={"config": dump(config), "given": given, "conductor": conductor},
        scaling_config=_scaling(config),
        run_config=TrainRunConfig(
            name=f"{config.run.name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=config.training.max_failures),
            worker_runtime_env={"env_vars": _environment(config)},
        ),
        torch_config=TorchConfig(
            backend="nccl" if config.training.worker_gpus else "gloo",
            timeout_s=int(config.training.timeout),
        ),
    )


def _environment(config: RunConfig) -> dict[str, str]:
    """Of the workers."""
    return {
        # DeepSpeed would move a worker without a GPU to one that it happens to see.
        "DS_ACCELERATOR": "cuda" if config.training.worker_gpus else "cpu",
        # At its first start it compiles two files, each by a compiler of 1.5 GiB: one at a time.
        "MAX_JOBS": "1",
    }


def _work(settings: dict[str, Any]) -> None:
    """One worker of the trainer."""
    config = parse(yaml.safe_load(settings["config"]))
    training = config.training
    cores = max(1, (os.cpu_count() or 1) - 1)  # one is left to the teachers
    machine.compute_with(training.threads or max(1, cores // training.workers))
    device = ray.train.torch.get_device() if training.worker_gpus else torch.device("cpu")
    first = ray.train.get_context().get_world_rank() == 0
    inbox = _Inbox(settings["conductor"])
    try:
        teachers, start, shelf = settings["given"]
        outcome = Amalgamator(config, teachers, inbox.post, device, start, shelf).run()
    except DfkaError as error:
        # It is no failure of Ray Train's, which would start the workers again.
        inbox.end(error)
        return
    if first:
        inbox.end(outcome)


def _scaling(config: RunConfig) -> ScalingConfig:
    training = config.training
    resources = {"CPU": training.worker_cpus} | (
        {"GPU": training.worker_gpus} if training.worker_gpus else {}
    )
    return ScalingConfig(
        num_workers=training.workers,
        use_gpu=bool(training.worker_gpus),
        resources_per_worker=resources,
    )
