"""Where a run is, and what of it must not be lost: so that it goes on after an interruption.

A run that goes on does everything again from the beginning, with nothing left to do in phases that
are over: what they held is what it was, and the steps of the one that was running begin where the
checkpoint was made. Every draw is a function of stream and step, so that nothing else is needed.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from dfka_dist.config import CheckpointSpec
from dfka_dist.errors import Interrupted, NonFiniteNetwork, NotKept, RunFailed
from dfka_dist.training.checkpoint import Reading, State, Writing, read_state, write_state
from dfka_dist.training.collectives import Vote, rank_and_size, said_by_any
from dfka_dist.training.diary import Diary
from dfka_dist.training.identity import first_difference
from dfka_dist.training.lists import LASTING, Told

log = logging.getLogger(__name__)

T = TypeVar("T")


class Held(Protocol):
    """Something that changes while a run goes on."""

    def save(self, writing: Writing, name: str) -> None:
        """Write what it is now below `name`; every rank calls, and meets the others even if it
        cannot write.

        Raises:
            OSError: it cannot.
        """

    def restore(self, reading: Reading, name: str) -> None:
        """Become what it was; every rank calls."""


@runtime_checkable
class Trained(Held, Protocol):
    """A network that learns."""

    def is_finite(self) -> bool:
        """Whether all its numbers are, on this rank."""


class Shelf(Protocol):
    """Where checkpoints are kept."""

    @property
    def identity(self) -> dict[str, Any]:
        """What may not differ when the run goes on."""

    def newest(self) -> Reading | None:
        """The newest that is whole, and the same on every rank; every rank calls."""

    def desk(self) -> Path:
        """A folder on this worker's machine, for what is on its way."""

    def add(self, writing: Writing, global_step: int) -> None:
        """Take this rank's part of a checkpoint; every rank calls, and may wait for the others."""


class Ledger:
    """Phases of a run, and what they hold.

    Args:
        spec: how often, and what happens when one cannot be written.
        shelf: None for a run that keeps no checkpoints.
        stopping: whether this worker was told to stop.
        vote: on that, of all workers.

    Raises:
        RunFailed: the newest checkpoint is another run's; on every worker.
    """

    def __init__(
        self,
        diary: Diary,
        spec: CheckpointSpec,
        shelf: Shelf | None = None,
        stopping: Callable[[], bool] = lambda: False,
        vote: Vote | None = None,
    ) -> None:
        self._diary, self._spec, self._shelf = diary, spec, shelf
        self._stopping, self._vote = stopping, vote or Vote(torch.device("cpu"))
        self._held: dict[str, Held] = {"results": Results()}
        self._told: dict[str, Told] = {}
        self.facts: dict[str, Any] = {}
        """More that checkpoints are to say of the run."""
        self.saving_seconds = 0.0
        """That checkpoints have taken since this start, and what is waited for before them."""
        self._resumed = shelf.newest() if shelf else None
        if self._resumed is not None and shelf is not None:
            _refuse_another(self._resumed, shelf.identity)
            diary.resume(self._resumed.run["diary"])
            self.results.restore(self._resumed, "results")
            self._told |= self._resumed.told

    @property
    def beginning(self) -> str | None:
        """Where the run goes on; None if it keeps no checkpoints."""
        if self._shelf is None:
            return None
        if self._resumed is None:
            return f"begins at step 0: no whole checkpoint in {self._shelf}"
        where = f"{self._resumed.folder.name} in {self._shelf}"
        return f"goes on from step {self._diary.global_step}: {where}"

    def began_with(self, name: str) -> dict[str, Any] | None:
        """What the checkpoint that the run goes on from says under a name of its facts."""
        fact = None if self._resumed is None else self._resumed.run.get(name)
        return fact if isinstance(fact, dict) else None

    @property
    def results(self) -> Results:
        """Of phases that are over."""
        results = self._held["results"]
        assert isinstance(results, Results)
        return results

    def hold(self, name: str, thing: Held) -> None:
        """Keep a thing through interruptions; it is what it was, if this run goes on."""
        self._held[name] = thing
        if self._resumed is not None and self._resumed.holds(name):
            thing.restore(self._resumed, name)

    def began_without(self, name: str) -> bool:
        """Whether this run goes on from a checkpoint in which nothing was held under a name."""
        return self._resumed is not None and not self._resumed.holds(name)

    def release(self, *names: str) -> None:
        """These are not needed any more."""
        for name in names:
            del self._held[name]

    def once(self, name: str, make: Callable[[], dict[str, State]]) -> dict[str, State]:
        """What is made, or was made before the interruption."""
        if name not in self.results.made:
            self.results.made[name] = make()
        return self.results.made[name]

    @contextmanager
    def phase(
        self, name: str, steps: int, settle: Callable[[], None] = lambda: None
    ) -> Iterator[Phase]:
        """Everything that is told and done inside belongs to this phase.

        Args:
            settle: called before a checkpoint is made.
        """
        if self._diary.is_over(name):
            yield Phase(self, range(0), settle)
            return
        with self._diary.phase(name, steps) as done:
            yield Phase(self, range(done, steps), settle)
            self._vote.settle()

    def made(self, settle: Callable[[], None]) -> None:
        """A step is over: make a checkpoint, if it is time or the run is to stop.

        Raises:
            Interrupted: it is to stop; on every worker.
            NonFiniteNetwork: one holds numbers with which nothing can go on; on every worker.
            NotKept: it could not be written, and the run is to end then.
        """
        step, stops = self._diary.global_step, self._vote.cast(self._stopping())
        if stops:  # of all workers, which end now
            self._vote.settle()
        if self._shelf is None:
            if stops:
                raise Interrupted(f"stopped at step {step}; nothing is kept")
            return
        kept = True
        if stops or step % self._spec.every == 0:
            kept = self._keep(self._shelf, settle, stops=stops)
        if stops:
            what = "with a checkpoint" if kept else "without a checkpoint"
            raise Interrupted(f"stopped {what} at step {step}; --resume goes on from the newest")

    def _keep(self, shelf: Shelf, settle: Callable[[], None], *, stops: bool) -> bool:
        """Make a checkpoint; whether it could be written."""
        told, began = dict(self._told), time.monotonic()
        try:
            settle()
            self._refuse_non_finite()
            self._write(shelf)
        except NotKept as error:
            self._told.clear()
            self._told.update(told)
            if self._spec.on_failure == "end" and not stops:
                raise
            log.warning("%s; the run %s", error, "stops" if stops else "goes on")
            return False
        finally:
            self.saving_seconds += time.monotonic() - began
        return True

    def _refuse_non_finite(self) -> None:
        """Those before it stay, from which the run can go on with other settings."""
        trained = {name: each for name, each in self._held.items() if isinstance(each, Trained)}
        broken = said_by_any(", ".join(n for n, each in trained.items() if not each.is_finite()))
        if broken is not None:
            what = f"no checkpoint at step {self._diary.global_step}: not finite any more"
            raise NonFiniteNetwork(f"{what}: {broken}")

    def _write(self, shelf: Shelf) -> None:
        step, (rank, size) = self._diary.global_step, rank_and_size()
        with ExitStack() as room:

            def begin() -> Writing:
                made = tempfile.TemporaryDirectory(dir=shelf.desk())
                place = Path(room.enter_context(made))
                writing = Writing(place / "now", place / LASTING, rank, size, self._told)
                for name in self._held:
                    writing.under(name)
                return writing

            writing = _together(step, begin)
            for name, thing in self._held.items():
                _together(step, partial(thing.save, writing, name))
            told = {"diary": self._diary.state(), "identity": shelf.identity, **self.facts}
            _together(step, partial(writing.close, told))
            shelf.add(writing, step)


def _refuse_another(reading: Reading, own: Mapping[str, Any]) -> None:
    """The driver has looked, but others may have written there since."""
    difference = first_difference(reading.run.get("identity", {}), own)
    if difference is not None:
        found = f"{reading.folder.name} is another run's"
        raise RunFailed(f"{found}: {difference.key} {difference}")


def _together(step: int, write: Callable[[], T]) -> T:
    """What is written by every rank, or else kept by none.

    Raises:
        NotKept: one of them could not write; on all.
    """
    made, failure = list[T](), None
    try:
        made.append(write())
    except OSError as error:
        failure = str(error)
    failure = said_by_any(failure)
    if failure is not None:
        raise NotKept(f"no checkpoint at step {step}: {failure}")
    return made[0]


class Phase:
    """What is left of a phase.

    Args:
        left: its steps, the first is 0.
    """

    def __init__(self, ledger: Ledger, left: range, settle: Callable[[], None]) -> None:
        self._ledger, self.left, self._settle = ledger, left, settle

    def steps(self, part: range | None = None) -> Iterator[int]:
        """The steps to do, of the whole phase or a part of it."""
        for step in self.within(part):
            yield step
            self._ledger.made(self._settle)

    def within(self, part: range | None = None) -> range:
        """Those of a part that are left."""
        if part is None:
            return self.left
        first = max(part.start, self.left.start) if self.left else part.stop
        return range(min(first, part.stop), part.stop)


class Results:
    """What phases that are over have left; the same on every rank."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, State]] = {}

    def save(self, writing: Writing, name: str) -> None:
        """See `Held`."""
        if writing.rank:
            return
        for key, states in self.made.items():
            flat = {f"{part}|{k}": v for part, state in states.items() for k, v in state.items()}
            write_state(writing.under(name) / f"{key}.safetensors", flat)

    def restore(self, reading: Reading, name: str) -> None:
        """See `Held`."""
        for place in sorted((reading.folder / name).glob("*.safetensors")):
            states: dict[str, dict[str, Any]] = {}
            for key, value in read_state(place).items():
                part, _, own = key.partition("|")
                states.setdefault(part, {})[own] = value
            self.made[place.stem] = states
