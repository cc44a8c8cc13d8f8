"""Reading an archive as an endless stream of shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pyarrow import parquet
from pydantic import ValidationError
from torch import Tensor

from dfka_dist.archive.contents import METADATA, ArchivedTeacher, Contents, logits_of
from dfka_dist.archive.order import Window, windows
from dfka_dist.config import TeacherSpec
from dfka_dist.errors import InputError, some
from dfka_dist.places import UNREACHABLE, Place

_BUFFER = 2**28
_REMEDY = "an archive that a run wrote"
_INTACT = "intact shards of one archive"
Rows = npt.NDArray[np.void]
"""(n,) of `Contents.row`."""


@dataclass(frozen=True)
class ArchivedBatch:
    """Images out of an archive, with what each teacher said of them."""

    images: Tensor
    """(n, C, H, W) float32 in [0, 1]"""
    homes: Tensor
    """(n,) int64, the number in `Archive.teachers` of the one that an image was made for, or -1."""
    logits: dict[str, Tensor]
    """Per teacher (n, K) float32."""


@dataclass(frozen=True)
class _RowGroup:
    shard: str
    footer: Any
    number: int

    @property
    def rows(self) -> int:
        return int(self.footer.row_group(self.number).num_rows)


class Archive:
    """The images and answers that a run has written; `open` makes one."""

    def __init__(self, place: Place, contents: Contents, groups: Sequence[_RowGroup]) -> None:
        self._place, self._contents, self._groups = place, contents, groups
        self._sizes = [group.rows for group in groups]

    @classmethod
    def open(cls, uri: str, key: str) -> Self:
        """Read what every shard says of itself.

        Args:
            uri: absolute path or `pyarrow.fs` URI of the folder.
            key: configuration key that errors name, now and while batches are read.

        Raises:
            InputError: there is no archive, it is empty, or a shard is truncated or of another
                archive.
        """
        place = Place(uri, key)
        names = place.shards()
        if not names:
            what = "holds no Parquet file" if place.exists() else "does not exist"
            raise place.error(what, _REMEDY)
        footers = [footer(place, name) for name in names]
        first = footers[0][0]
        groups: list[_RowGroup] = []
        for name, (contents, told) in zip(names, footers, strict=True):
            if contents != first:
                what = f"holds two archives: {names[0]} and {name} differ"
                raise place.error(what, "the shards of one run")
            groups += [_RowGroup(name, told, i) for i in range(told.num_row_groups)]
        archive = cls(place, first, groups)
        if not len(archive):
            raise place.error("holds no image", _REMEDY)
        return archive

    @property
    def run(self) -> str:
        """Name of the run that made it."""
        return self._contents.run

    @property
    def teachers(self) -> list[ArchivedTeacher]:
        """Whose answers it holds."""
        return self._contents.teachers

    @property
    def labels(self) -> list[str]:
        """What its images were asked to show, some of these."""
        return self._contents.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self._contents.shape

    @property
    def groups(self) -> int:
        """How many groups of rows it has, which are read at once."""
        return len(self._groups)

    def __len__(self) -> int:
        """Rows, that is images."""
        return sum(self._sizes)

    def set_apart(self, rows: int) -> tuple[Self, Self]:
        """What is learned from, and about so many rows of the archive's whole length that are
        not; both are the whole archive where that would take more than a quarter of its row groups.
        """
        count = -(-rows * len(self._groups) // len(self))
        if 4 * count > len(self._groups):
            return self, self
        apart = {len(self._groups) * (2 * i + 1) // (2 * count) for i in range(count)}
        parts = ([g for i, g in enumerate(self._groups) if (i in apart) == own] for own in (0, 1))
        learned, held = (type(self)(self._place, self._contents, part) for part in parts)
        return learned, held

    def check(
        self,
        specs: Sequence[TeacherSpec],
        labels: Sequence[str],
        key: str,
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        """Make sure that it fits a run: answers of its teachers, and for every wanted label.

        There may be answers of more teachers. A label that a teacher knows is enough, even if no
        image was made to show it.

        Args:
            specs: the teachers that know a wanted label.
            labels: what the target shall know.
            key: configuration key that an error names.
            sha256: by teacher, of the weights that are there; without it none are.

        Raises:
            InputError: naming the first thing that differs.
        """
        known = {teacher.name: teacher for teacher in self.teachers}
        for spec in specs:
            if spec.name not in known:
                what = f"{self._place} holds answers of {some(known)}, not of {spec.name}"
                raise InputError(key, what, "an archive of these teachers")
            self._check_teacher(known[spec.name], spec, key, sha256)
        self._check_labels(labels, key)

    def _check_teacher(
        self,
        teacher: ArchivedTeacher,
        spec: TeacherSpec,
        key: str,
        sha256: Mapping[str, str] | None,
    ) -> None:
        for field in ("task", "labels"):
            then, now = getattr(teacher, field), getattr(spec, field)
            if then != now:
                there, here = _apart(then, now)
                what = f"{self._place} has other {field} for {spec.name}: {there}"
                raise InputError(key, what, f"the same, in order; here they are {here}")
        if sha256 is not None and sha256[spec.name] != teacher.sha256:
            what = f"{self._place} holds answers of other weights of {spec.name}"
            raise InputError(
                key, what, f"weights with the sha256 {teacher.sha256[:12]}..., or none"
            )

    def _check_labels(self, labels: Sequence[str], key: str) -> None:
        known = list(dict.fromkeys(label for t in self.teachers for label in t.labels))
        unknown = [label for label in labels if label not in known]
        if unknown:
            what = f"no teacher in {self._place} knows {some(unknown)}"
            raise InputError(key, what, f"some of {some(known, unknown[0])}")

    def batches(
        self, *, size: int, seed: int, shares: int = 1, share: int = 0, buffer: int = _BUFFER
    ) -> Iterator[ArchivedBatch]:
        """Batches without end: epochs, each of every row once, in an order that the seed decides.

        Every share reads the whole archive and keeps its own rows: the shares of a batch, one
        after another, are the batch that a single worker gets. A batch may reach into the next
        epoch.

        Args:
            size: rows of a global batch, a multiple of `shares`.
            share: which part of every global batch is wanted.
            buffer: bytes in which rows are mixed, over all shares together. The order depends on
                it. Besides, a row group or two and a batch are in memory.

        Raises:
            InputError: while iterating, where a shard cannot be read.
        """
        assert size > 0 and size % shares == 0 and 0 <= share < shares
        return self._batches(size, seed, shares, share, self._contents.rows_in(buffer))

    def _batches(
        self, size: int, seed: int, shares: int, share: int, most: int
    ) -> Iterator[ArchivedBatch]:
        part, position = size // shares, 0
        rest = np.empty(0, self._contents.row)
        for window in windows(self._sizes, seed=seed, most=most):
            columns = (position + np.arange(len(window.order))) % size
            rows = self._read(window, window.order[columns // part == share])
            position = (position + len(window.order)) % size
            taken = 0
            while len(rest) + len(rows) - taken >= part:
                end = taken + part - len(rest)
                yield self._batch(np.concatenate([rest, rows[taken:end]]))
                rest, taken = rest[:0], end
            # A copy, for a view would keep the whole window in memory beside the next.
            rest = np.concatenate([rest, rows[taken:]])
            del rows

    def _read(self, window: Window, wanted: npt.NDArray[np.int64]) -> Rows:
        """Some rows of a window, in the order in which they are wanted."""
        rows = np.empty(len(wanted), self._contents.row)
        places = wanted.argsort()
        ends = np.cumsum([self._sizes[group] for group in window.groups])
        parts = np.split(places, np.searchsorted(wanted[places], ends))
        for group, end, to in zip(window.groups, ends, parts, strict=False):
            if len(to):
                inside = wanted[to] - (end - self._sizes[group])
                for name, values in self._columns(self._groups[group]).items():
                    rows[name][to] = values[inside]
        return rows

    def _columns(self, group: _RowGroup) -> dict[str, npt.NDArray[Any]]:
        kinds = self._contents.row
        names = list(kinds.names or ())
        try:
            with self._place.open(group.shard) as stream:
                file = parquet.ParquetFile(
                    stream, metadata=group.footer, page_checksum_verification=True
                )
                table = file.read_row_group(group.number, columns=names).combine_chunks()
        except UNREACHABLE as error:
            raise self._place.unreachable(error, group.shard) from None
        return {name: _values(table[name].chunk(0), kinds[name]) for name in names}

    def _batch(self, rows: Rows) -> ArchivedBatch:
        logits = {t.name: rows[logits_of(t.name)] for t in self.teachers}
        return ArchivedBatch(
            images=torch.from_numpy(rows["image"].astype(np.float32)),
            homes=torch.from_numpy(rows["home"].astype(np.int64)),
            logits={
                name: torch.from_numpy(said.astype(np.float32)) for name, said in logits.items()
            },
        )


def footer(place: Place, name: str) -> tuple[Contents, Any]:
    """What a shard says of itself, and where its row groups are.

    Raises:
        InputError: it is truncated, or no shard of an archive.
    """
    try:
        with place.open(name) as stream:
            file = parquet.ParquetFile(stream, page_checksum_verification=True)
            schema, found = file.schema_arrow, file.metadata
    except UNREACHABLE as error:
        what = f"{name} is truncated or no Parquet file: {place.plain(error)}"
        raise place.error(f"holds a broken shard: {what}", _INTACT) from None
    said = (schema.metadata or {}).get(METADATA)
    if said is None:
        raise place.error(f"holds no archive: {name} has no dfka_dist metadata", _REMEDY)
    try:
        contents = Contents.model_validate_json(said)
    except ValidationError as error:
        what = f"{name} is of another format: {error.errors()[0]['msg']}"
        raise place.error(f"cannot be read: {what}", "an archive of this version") from None
    if not schema.equals(contents.schema):
        raise place.error(f"cannot be read: {name} has other columns than it says", _INTACT)
    return contents, found


def _values(column: Any, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """A column as an array (rows, *shape of one value)."""
    if kind.base == np.dtype("<f2"):  # bytes, for pyarrow
        count = len(column) * kind.itemsize // 2
        flat = np.frombuffer(column.buffers()[1], kind.base, count, column.offset * kind.itemsize)
    else:
        flat = (column.flatten() if kind.shape else column).to_numpy(zero_copy_only=False)
    values: npt.NDArray[Any] = flat.reshape(-1, *kind.shape)
    return values


def _apart(there: str | list[str], here: str | list[str]) -> tuple[str, str]:
    """Two tasks, or two lists of labels, so that one line shows where they differ."""
    if isinstance(there, str) or isinstance(here, str):
        return str(there), str(here)
    if some(there) != some(here):
        return some(there), some(here)
    pairs = enumerate(zip(there, here, strict=False))
    same = next((i for i, (one, other) in pairs if one != other), min(len(there), len(here)))
    last = max(0, same - 1)  # that is the same in both
    return f"..., {some(there[last:])}", f"..., {some(here[last:])}"
