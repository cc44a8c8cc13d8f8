"""One of two workers that keep checkpoints together, in a process of its own, and what it finds."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from limits import no_file_longer_than
from torch import Tensor, nn

from dfka_dist.config import CheckpointSpec, TrainingSpec
from dfka_dist.errors import NonFiniteNetwork, NotKept, RunFailed
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.training import fence, pruning
from dfka_dist.training.diary import Diary
from dfka_dist.training.engines import Engine
from dfka_dist.training.ledger import Ledger
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.shelf import FolderShelf
from dfka_dist.training.streams import Streams

STEPS = 3
COLUMNS = 8
STAGES = (1, 3)
Found = dict[str, Any]
Trouble = Callable[[], AbstractContextManager[None]]


def work(rank: int, size: int, folder: Path, storage: str) -> None:
    """Join the others, and leave the findings in `folder/<rank>.pt`."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    is_last = rank == size - 1
    small = partial(no_file_longer_than, 1024)
    found: Found = {
        "full": kept(folder / "full", small if is_last else untroubled, at=2),
        "homeless": kept(folder / "homeless", no_desk if is_last else untroubled, at=1),
        "ended": ended(folder / "ended", small if is_last else untroubled),
        "differing": differing(folder, rank),
        "apart": apart(folder, rank),
        "spoiled": spoiled(folder / "spoiled", is_spoiled=is_last),
        "fetched": {stage: fetched(storage.replace("?", f"-{stage}?"), stage) for stage in STAGES},
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@contextmanager
def untroubled() -> Iterator[None]:
    yield


@contextmanager
def no_desk() -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, "/nowhere/at/all"
    try:
        yield
    finally:
        tempfile.tempdir = before


def run(
    shelf: FolderShelf,
    trouble: Trouble = untroubled,
    at: int = 0,
    steps: int = STEPS,
    stage: int = 1,
    harm: Callable[[nn.Module], None] | None = None,
    **spec: Any,
) -> Tensor:
    """Steps of an engine, with a checkpoint after each; all numbers that came out.

    Args:
        trouble: around the saving of one step.
        at: which that is.
        harm: done to the network before that.
    """
    diary = Diary(TrainingSpec(), LocalTeachers({}), None)
    ledger = Ledger(diary, CheckpointSpec(every=1, **spec), shelf)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32))
    engine = Engine(network, micro_batch=1, zero_stage=stage, precision="fp32", rate=0.1)
    columns = range(COLUMNS * rank // size, COLUMNS * (rank + 1) // size)
    memory = SampleMemory(columns=columns, capacity=10**5, streams=Streams(0))
    ledger.hold("engine", engine)
    ledger.hold("memory", memory)
    with ledger.phase("any", steps) as phase:
        for step in phase.left:
            noise = torch.Generator().manual_seed(10 * step + rank)
            outputs = engine(torch.rand(4, 32, generator=noise))
            engine.step([outputs], [torch.rand(4, 32, generator=noise)], rate=0.1)
            pictures = torch.rand(len(columns), 1, 8, 8, generator=noise)
            memory.add(Labelled(pictures, {}, torch.full((len(columns),), -1)))
            diary.tell(step + 1)
            if harm is not None and step + 1 == at:
                harm(network)
            with trouble() if step + 1 == at else untroubled():
                ledger.made(lambda: None)
    made = torch.cat([value.flatten().float() for value in engine.state().values()])
    engine.destroy()
    return torch.cat([made, memory.newest(0, 1).images.flatten()])


def kept(place: Path, trouble: Trouble, at: int) -> Found:
    """What a run goes through that cannot save once."""
    shelf = FolderShelf(str(place), keep=9)
    with heard() as warnings:
        run(shelf, trouble, at)
    shelf.close()
    return {"steps": shelf.steps(), "warnings": warnings}


def ended(place: Path, trouble: Trouble) -> str:
    """What a run says at its end that is to end then."""
    shelf = FolderShelf(str(place), keep=9)
    try:
        run(shelf, trouble, at=2, on_failure="end")
    except NotKept as error:
        return str(error)
    finally:
        shelf.close()
    return "it went on"


def spoiled(place: Path, *, is_spoiled: bool) -> Found:
    """What is kept of a network that is no number any more on one worker, and what is said."""
    shelf, said = FolderShelf(str(place), keep=9), "it went on"
    try:
        run(shelf, at=2, harm=not_a_number if is_spoiled else None)
    except NonFiniteNetwork as error:
        said = str(error)
    shelf.close()
    return {"steps": shelf.steps(), "said": said}


def not_a_number(network: nn.Module) -> None:
    next(network.parameters()).data.view(-1)[-1] = float("nan")


def differing(folder: Path, rank: int) -> Found:
    """Which checkpoint is taken if the newest is broken for one worker alone."""
    own = folder / f"copy-{rank}"
    shutil.copytree(folder / "homeless", own)
    if rank:
        (own / f"checkpoint-{STEPS:09}" / "run.json").write_text("{")
    with heard() as warnings:
        newest = FolderShelf(str(own), keep=9).newest()
    step = None if newest is None else newest.run["diary"]["step"]
    return {"step": step, "warnings": warnings}


def apart(folder: Path, rank: int) -> Found:
    """What is said of a folder that is another one for each worker: when a run goes on, when it
    begins, and when it saves."""
    own = folder / f"apart-{rank}"
    if rank == 0:
        shutil.copytree(folder / "homeless", own)
    fence.SETTLING = pruning.SETTLING = 0.0
    unmarked = FolderShelf(str(own), keep=9)
    marked = FolderShelf(str(own), keep=9, start="a start")
    if rank == 0:
        marked.begin(anew=False)
    said = [refused(unmarked.newest), refused(marked.newest)]
    with heard() as warnings:
        run(FolderShelf(str(folder / f"empty-{rank}"), keep=9), steps=1)
    return {"said": said, "warnings": warnings, "left": unmarked.steps()}


def refused(newest: Callable[[], object]) -> str:
    try:
        newest()
    except RunFailed as error:
        return str(error)
    return "nothing"


def fetched(storage: str, stage: int) -> Found:
    """What a worker takes down from an object store, and whether it goes on as if it had not."""
    expected = run(FolderShelf(storage.replace("?", "-undisturbed?"), keep=9), stage=stage)
    first = FolderShelf(storage, keep=9)
    run(first, steps=STEPS - 1, stage=stage)
    first.close()
    again = FolderShelf(storage, keep=9)
    made = run(again, stage=stage)
    taken = again.desk() / "taken"
    names = sorted(p.relative_to(taken).as_posix() for p in taken.rglob("*") if p.is_file())
    again.close()
    return {"names": names, "same": made.equal(expected), "left": again.steps()}


@contextmanager
def heard() -> Iterator[list[str]]:
    """Warnings of this process."""
    warnings: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    ear = Ear(logging.WARNING)
    logging.getLogger("dfka_dist").addHandler(ear)
    try:
        yield warnings
    finally:
        logging.getLogger("dfka_dist").removeHandler(ear)
