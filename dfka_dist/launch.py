"""The `Amalgamator` inside a Ray Train job: the only module that starts workers."""

from __future__ import annotations

import logging
import shutil
import tempfile
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

from dfka_dist import machine, resuming
from dfka_dist.config import RunConfig
from dfka_dist.elastic import RoomyTrainer
from dfka_dist.errors import DfkaError, InputError, RunFailed
from dfka_dist.loading import dump, parse
from dfka_dist.notices import Failure, Inbox, Meeting, NoticeBoard, Seat, Warner
from dfka_dist.presence import KnownCleaner, Presence, clear_away
from dfka_dist.teachers.pool import beside_the_driver
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.silent import SilentTeachers
from dfka_dist.training.amalgamator import Amalgamator
from dfka_dist.training.collectives import gathered, is_out_of_time, rank_and_size
from dfka_dist.training.diary import Record
from dfka_dist.training.outcome import Outcome
from dfka_dist.training.probe import Contest
from dfka_dist.training.shelf import FolderShelf
from dfka_dist.watching import Watch
from dfka_dist.wires import OwnInterface

log = logging.getLogger(__name__)

PREFIX = "dfka-"
"""Of temporary folders."""


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

    def steps_on(self, shelf: FolderShelf) -> list[int]:
        """Of the checkpoints on a shelf, as they are seen from the driver's node."""
        return shelf.steps()


def amalgamate(
    config: RunConfig,
    teachers: ServedTeachers | SilentTeachers,
    on_record: Callable[[Record], None],
    start: dict[str, torch.Tensor] | None = None,
    shelf: FolderShelf | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_warning: Callable[[str], None] = log.warning,
    contest: Contest | None = None,
    on_word: Callable[[str], None] = log.info,
    prefix: str = PREFIX,
) -> Outcome:
    """Run the training workers and wait for what rank 0 returns.

    Workers that die are started again, `training.max_failures` times, and go on from the newest
    checkpoint.

    Args:
        on_record: called in this process with each record; with some again after a restart.
        on_warning: called with what rank 0 warns of, one line.
        on_word: called with where the run begins or goes on, one line, at every start of workers.
        start: state of a target to go on with.
        shelf: of the run's checkpoints.
        stopping: whether workers are to make a checkpoint and stop; a node of theirs that the
            cluster is about to take away says so too, if they keep any.
        contest: in which the run takes part.
        prefix: of the temporary folder, by which it is found if this process is killed.

    Raises:
        Interrupted: they were stopped.
        DfkaError: as it was raised in a worker; `RunFailed` for whatever else went wrong.
    """
    options = {"num_cpus": 0, "max_concurrency": 2} | beside_the_driver()
    options["scheduling_strategy"] = "DEFAULT"  # and not within the placement group of a trial
    given = Given(teachers, start, shelf, contest)
    conductor = ray.remote(_Conductor).options(**options).remote()
    watch: Watch | None = None
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as storage:
            running = conductor.fit.remote(config, given, storage)
            watch = Watch(conductor, running, stopping, config.training)
            return watch.to_the_end(on_record, on_warning, on_word)
    finally:
        ray.kill(conductor)  # and with it Ray Train's own actors, if they are still there
        if watch is not None and watch.controller is not None:
            clear_away(watch.controller, watch.cleaner)


def _trainer(config: RunConfig, given: Given, conductor: Any, storage: str) -> RoomyTrainer:
    return RoomyTrainer(
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
            callbacks=[Presence(conductor), KnownCleaner(conductor)],
        ),
        torch_config=OwnInterface(
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
    made = None
    try:
        made = Amalgamator(
            config,
            given.teachers,
            inbox.post,
            device,
            given.start,
            _met(inbox, given.shelf, config, settings["home"]),
            inbox.stopping,
            given.contest,
        )
        if first and made.beginning is not None:
            inbox.say(made.beginning)
        outcome = made.run()
    except DfkaError as error:
        # It is no failure of Ray Train's, which would start the workers again.
        inbox.end(error)
        _let_the_others_go()
        return
    except RuntimeError as error:  # torch's, where another worker has left a collective
        story = traceback.format_exc()
        waited, step = is_out_of_time(error), made.step if made else 0
        if not inbox.fail(Failure(context.get_world_rank(), step, waited, story)):
            raise
        return
    finally:
        if ray.get_runtime_context().get_node_id() != settings["home"]:
            # Ray Train makes its folder on every node; the driver's is the driver's to remove.
            shutil.rmtree(settings["storage"], ignore_errors=True)
        if given.shelf is not None:
            given.shelf.close()
    if first:
        inbox.end(outcome)


def _met(
    inbox: Inbox, shelf: FolderShelf | None, config: RunConfig, home: str
) -> FolderShelf | None:
    """The shelf, if all workers and the driver reach it from where they are by now; a collective.

    The driver has counted nodes before the cluster grew for this run, or another joined it.

    Args:
        home: id of the driver's node.

    Raises:
        RunFailed: they do not, and are to, or have kept checkpoints there; on every worker.
    """
    here = Seat(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address())
    seats = tuple(gathered(here))
    nodes = len({home, *(seat.node for seat in seats)})
    try:
        reached = resuming.reachable(shelf, config, nodes)
        if shelf is not None and reached is None:
            steps = inbox.steps_on(shelf) if rank_and_size()[0] == 0 else []
            resuming.refuse_out_of_reach(shelf, gathered(steps)[0], nodes)
    except InputError as error:  # it was not seen before the run began, and the run ends for it
        raise RunFailed(str(error)) from None
    if rank_and_size()[0] == 0:
        inbox.meet(Meeting(seats, keeps=reached is not None))
    return reached


def _let_the_others_go() -> None:
    """A collective in which others wait for this worker fails there, as soon as nothing here holds
    the group any more; DeepSpeed's engines may, and then the driver ends the others."""
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
