"""Earlier synthesized images with the teachers' answers, so that the student does not forget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dfka_dist.training.checkpoint import Reading, Writing, read_json, under, write_json
from dfka_dist.training.collectives import rank_and_size
from dfka_dist.training.streams import Streams

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Labelled:
    """Images with what each teacher says of them."""

    images: Tensor
    """(N, C, H, W) in [0, 1]"""
    logits: dict[str, Tensor]
    """Per teacher (N, K); zero for images that do not concern it."""
    homes: Tensor
    """(N,) index of the only teacher whom an image concerns, or -1: it concerns all."""

    @staticmethod
    def joined(*parts: Labelled) -> Labelled:
        """One batch of several."""
        names = parts[0].logits
        return Labelled(
            torch.cat([part.images for part in parts]),
            {name: torch.cat([part.logits[name] for part in parts]) for name in names},
            torch.cat([part.homes for part in parts]),
        )

    def taken(self, chosen: Tensor | slice) -> Labelled:
        """Some of the images, by their indices (n,)."""
        logits = {name: value[chosen] for name, value in self.logits.items()}
        return Labelled(self.images[chosen], logits, self.homes[chosen])


def image_bytes(values: int, labels: int) -> int:
    """What a remembered image takes: 16 bits for each of its values (C * H * W), and 32 for each
    label of each teacher."""
    return 2 * values + 4 * labels


class SampleMemory:
    """The newest steps' batches, as many as fit; this worker keeps its own columns of every batch.

    A remembered image keeps its column (its global index within the batch), and only the step is
    drawn.
    So a draw needs no other worker, and does not depend on how many there are. Images are kept in
    16 bits.

    Args:
        columns: global sample indices, within a batch, that this worker makes.
        capacity: bytes.
        device: of images and logits, those that a checkpoint brings back too.
    """

    def __init__(
        self,
        *,
        columns: range,
        capacity: int,
        streams: Streams,
        device: torch.device = CPU,
    ) -> None:
        self.columns = columns
        self._capacity = capacity
        self._streams = streams
        self._device = device
        self._images: Tensor | None = None
        self._logits: dict[str, Tensor] = {}
        self._homes = torch.empty(0)
        self._added = 0
        self._parts: list[range] = []  # of steps, that were saved together

    def __len__(self) -> int:
        """Steps that are kept."""
        return min(self._added, self._slots)

    def add(self, batch: Labelled) -> None:
        """Remember this worker's part of the newest batch; the oldest makes room."""
        if self._images is None:
            self._allocate(batch)
        assert self._images is not None
        slot = self._added % len(self._images)
        self._images[slot] = batch.images.detach()
        for name, logits in batch.logits.items():
            self._logits[name][slot] = logits.detach()
        self._added += 1

    def newest(self, offset: int, stride: int) -> Labelled:
        """Every `stride`-th column of the newest batch; `offset` says which."""
        columns = self.every(offset, stride)
        return self._at(torch.full_like(columns, (self._added - 1) % self._slots), columns)

    def draw(self, stream: str, step: int, offset: int = 0, stride: int = 1) -> Labelled:
        """One remembered image for every `stride`-th column; `offset` says which."""
        columns = self.every(offset, stride)
        chance = self._streams.uniform(stream, step, self.columns, 1)[columns, 0]
        return self._at((chance * len(self)).long(), columns)

    def save(self, writing: Writing, name: str) -> None:
        """What came since the last time, beside what is there already."""
        since = self._parts[-1].stop if self._parts else 0
        if self._added > since:
            self._parts.append(range(max(since, self._added - self._slots), self._added))
        self._parts = [part for part in self._parts if part.stop > self._added - self._slots]
        for part in self._parts:
            named = _named(name, writing.rank, writing.size, part)
            writing.outlasting(named, partial(self._steps, part), claimed=True)
        own = {"added": self._added, "parts": [[part.start, part.stop] for part in self._parts]}
        place = writing.under(name) / f"{writing.rank}.json"
        write_json(place, own)
        writing.claim(place)

    def restore(self, reading: Reading, name: str) -> None:
        """Remember what was saved; by another number of workers, of every batch the columns that
        are this one's now."""
        rank, size = rank_and_size()
        same = reading.workers == size
        ranks = [rank] if same else list(range(reading.workers))
        told = [read_json(reading.folder / name / f"{each}.json") for each in ranks]
        own = slice(None) if same else slice(self.columns.start, self.columns.stop)
        parts = [range(*part) for part in told[0]["parts"]]
        for part in parts:
            names = [_named(name, each, reading.workers, part) for each in ranks]
            self._recall(part, [reading.outlasting(each) for each in names], own)
        self._added = int(told[0]["added"])
        self._parts = parts if same else []
        if parts:
            self._fill(parts[0].start)

    def _recall(self, part: range, saved: list[dict[str, Tensor]], own: slice) -> None:
        homes = torch.cat([each["homes"] for each in saved])[own]
        whole = {
            k: torch.cat([each[k] for each in saved], 1)[:, own]
            for k in saved[0].keys() - {"homes"}
        }
        whole = {key: value.to(self._device) for key, value in whole.items()}
        logits = under(whole, "logits.")
        for index, step in enumerate(part):
            self._added = step
            said = {key: value[index] for key, value in logits.items()}
            self.add(Labelled(whole["images"][index], said, homes))

    def _fill(self, first: int) -> None:
        """Have room for no step before the first, where other workers had less."""
        for step in range(max(0, self._added - self._slots), first):
            for kept in self._kept:
                kept[step % self._slots] = kept[first % self._slots]

    def _steps(self, part: range) -> dict[str, Tensor]:
        assert self._images is not None
        slots = torch.tensor(part) % self._slots
        own = {"images": self._images[slots], "homes": self._homes}
        return own | {f"logits.{key}": kept[slots] for key, kept in self._logits.items()}

    @property
    def _kept(self) -> list[Tensor]:
        return [] if self._images is None else [self._images, *self._logits.values()]

    @property
    def _slots(self) -> int:
        return 0 if self._images is None else len(self._images)

    def every(self, offset: int, stride: int) -> Tensor:
        """Every `stride`-th column of the whole batch, `offset` says which, as indices within this
        worker's."""
        chosen = [i for i, column in enumerate(self.columns) if (column + offset) % stride == 0]
        return torch.tensor(chosen)

    def _at(self, slots: Tensor, columns: Tensor) -> Labelled:
        assert self._images is not None
        return Labelled(
            self._images[slots, columns].float(),
            {name: kept[slots, columns] for name, kept in self._logits.items()},
            self._homes[columns],
        )

    def _allocate(self, batch: Labelled) -> None:
        labels = sum(logits.shape[1] for logits in batch.logits.values())
        size = len(batch.images) * image_bytes(batch.images[0].numel(), labels)
        slots = max(1, self._capacity // size)
        device, self._homes = batch.images.device, batch.homes  # a home belongs to its column
        # Pages are not there before they are written.
        self._images = torch.empty(slots, *batch.images.shape, dtype=torch.float16, device=device)
        self._logits = {n: v.new_empty(slots, *v.shape) for n, v in batch.logits.items()}


def _named(name: str, rank: int, size: int, part: range) -> str:
    return f"{name}-{rank}-of-{size}-{part.start}-{part.stop}"
