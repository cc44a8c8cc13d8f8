"""The `Amalgamator` inside a Ray Train job: the only module that starts workers."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import yaml
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from dfka_dist import clusters, machine
from dfka_dist.config import RunConfig
from dfka_dist.errors import DfkaError, Interrupted, RunFailed
from dfka_dist.loading import dump, parse
from dfka_dist.notices import Inbox, News, NoticeBoard, Warner
from dfka_dist.teachers.pool import beside_the_driver
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.silent import SilentTeachers
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.probe import Contest
from dfka_dist.training.shelf import FolderShelf

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
PATIENCE = 45.0
"""Seconds that all workers have to end when one has told why. Ray Train that is killed before its
workers have ended leaves its placement group, on a cluster without a dashboard for good."""


@dataclass(frozen=True)
class Given:
    """What workers are given."""

    teachers: ServedTeachers | SilentTeachers
    start: dict[str, torch.Tensor] | None
    """State of a target to go on with."""
    shelf: FolderShelf | None
    """Place of their checkpoints."""
    contest: Contest | None


class _Conductor(NoticeBoard):
    """Runs Ray Train, and keeps what workers have to tell until the driver collects it.

    An actor beside the driver: in the driver Ray Train would take the signals, and die with the
    process instead of being left. One of its two threads belongs to `fit`.
    """

    def fit(self, config: RunConfig, given: Given, storage: str) -> str | None:
        """Run the workers to their end; the whole story if they fail."""
        own = ray.get_runtime_context().current_actor
        try:
            _trainer(config, given, own, storage).fit()
        except Exception:  # the driver raises, and knows whether a worker has said more
            return traceback.format_exc()
        return None


def amalgamate(
    config: RunConfig,
    teachers: ServedTeachers | SilentTeachers,
    on_record: Callable[[Record], None],
    start: dict[str, torch.Tensor] | None = None,
    shelf: FolderShelf | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_warning: Callable[[str], None] = log.warning,
    contest: Contest | None = None,
) -> Outcome:
    """Run the training workers and wait for what rank 0 returns.

    Workers that die are started again, `training.max_failures` times, and go on from the newest
    checkpoint.

    Args:
        on_record: called in this process with each record; with some again after a restart.
        on_warning: called with what rank 0 warns of, one line.
        start: state of a target to go on with.
        shelf: of the run's checkpoints.
        stopping: whether workers are to make a checkpoint and stop; a node of theirs that the
            cluster is about to take away says so too.
        contest: in which the run takes part.

    Raises:
        Interrupted: they were stopped.
        DfkaError: as it was raised in a worker; `RunFailed` for whatever else went wrong.
    """
    options = {"num_cpus": 0, "max_concurrency": 2} | beside_the_driver()
    options["scheduling_strategy"] = "DEFAULT"  # and not within the placement group of a trial
    given = Given(teachers, start, shelf, contest)
    conductor = ray.remote(_Conductor).options(**options).remote()
    try:
        with tempfile.TemporaryDirectory(prefix="dfka-") as storage:
            running = conductor.fit.remote(config, given, storage)
            grace = config.training.checkpoint.grace
            watch = _Watch(conductor, running, stopping, grace)
            return watch.to_the_end(on_record, on_warning)
    finally:
        ray.kill(conductor)  # and with it Ray Train's own actors, if they are still there


class _Watch:
    """The driver's eyes on the workers.

    Args:
        running: what `_Conductor.fit` will return.
        stopping: see `amalgamate`.
        grace: seconds between the word to stop and the end.
    """

    def __init__(
        self, conductor: Any, running: Any, stopping: Callable[[], bool], grace: float
    ) -> None:
        self._conductor, self._running, self._stopping = conductor, running, stopping
        self._grace = grace
        self._latest: float | None = None

    def to_the_end(
        self, on_record: Callable[[Record], None], on_warning: Callable[[str], None]
    ) -> Outcome:
        """See `amalgamate`."""
        over = False
        while not over:
            over = bool(ray.wait([self._running], timeout=POLL_SECONDS)[0])
            news: News = ray.get(self._conductor.collect.remote())
            for record in news.records:
                on_record(record)
            for warning in news.warnings:
                on_warning(warning)
            if isinstance(news.end, DfkaError):
                # The other workers have met the same, or wait for this one in vain.
                ray.wait([self._running], timeout=PATIENCE)
                raise news.end
            self._stop_if_told(news.nodes)
        if isinstance(news.end, Outcome):
            return news.end
        raise _failed(ray.get(self._running))

    def _stop_if_told(self, nodes: frozenset[str]) -> None:
        if self._latest is not None:
            if time.monotonic() > self._latest:
                raise Interrupted(f"stopped; no checkpoint was made within {self._grace:g} s")
        elif self._stopping() or nodes & clusters.draining():
            log.warning("the run is to stop: making a checkpoint")
            self._latest = time.monotonic() + self._grace
            self._conductor.stop.remote()


def _failed(story: str | None) -> RunFailed:
    if story is not None:
        log.error("%s", story)
    reason = story.strip().splitlines()[-1] if story else "they ended without a result"
    return RunFailed(f"the training workers failed: {reason}")


def _trainer(config: RunConfig, given: Given, conductor: Any, storage: str) -> TorchTrainer:
    return TorchTrainer(
        _work,
        train_loop_config={
            "config": dump(config),
            "given": given,
            "conductor": conductor,
            "storage": storage,
            "home": ray.get_runtime_context().get_node_id(),
        },
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
    cores = max(1, machine.cores() - 1)  # one is left to the teachers
    context = ray.train.get_context()
    machine.compute_with(training.threads or max(1, cores // context.get_local_world_size()))
    device = ray.train.torch.get_device() if training.worker_gpus else torch.device("cpu")
    first = context.get_world_rank() == 0
    inbox = Inbox(settings["conductor"])
    if first:
        logging.getLogger("dfka_dist").addHandler(Warner(inbox))
    given: Given = settings["given"]
    shelf = given.shelf
    try:
        made = Amalgamator(
            config,
            given.teachers,
            inbox.post,
            device,
            given.start,
            shelf,
            inbox.stopping,
            given.contest,
        )
        outcome = made.run()
    except DfkaError as error:
        # It is no failure of Ray Train's, which would start the workers again.
        inbox.end(error)
        _let_the_others_go()
        return
    except RuntimeError:  # torch's, where another worker has left a collective
        if inbox.is_over():
            return
        raise
    finally:
        if ray.get_runtime_context().get_node_id() != settings["home"]:
            # Ray Train makes its folder on every node; the driver's is the driver's to remove.
            shutil.rmtree(settings["storage"], ignore_errors=True)
        if shelf is not None:
            shelf.close()
    if first:
        inbox.end(outcome)


def _let_the_others_go() -> None:
    """A collective in which others wait for this worker fails there, instead of lasting until
    `training.timeout`."""
    if torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def _scaling(config: RunConfig) -> ScalingConfig:
    training, counts = config.training, config.training.worker_range
    resources = {"CPU": training.worker_cpus} | (
        {"GPU": training.worker_gpus} if training.worker_gpus else {}
    )
    return ScalingConfig(
        num_workers=(counts.start, counts.stop - 1) if len(counts) > 1 else counts.start,
        use_gpu=bool(training.worker_gpus),
        resources_per_worker=resources,
        label_selector=training.node_labels or None,
    )
