"""Writing one worker's shards while a run synthesizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from dfka_dist.archive.contents import Contents, logits_of, shard_name, shards_of
from dfka_dist.errors import RunFailed
from dfka_dist.places import UNREACHABLE, Place

_GROUP_ROWS = 1024
_GROUP_BYTES = 2**24


class ArchiveWriter:
    """Writes one worker's part of an archive; use it as a context manager.

    Rows wait until a row group of 1024 is full, or of as many as make 16 MiB: a row group is what a
    reader shuffles and what an object store is asked for, so that it should be worth a request,
    which a worker's part of a batch often is not, and several should fit into memory. A shard
    appears under its name when it is complete. What was added before a failure is kept.

    Args:
        uri: absolute path or `pyarrow.fs` URI of a folder, which is made if need be.
        contents: what its shards say of themselves; all workers of a run say the same.
        rank: of this worker.
        shards: that it has written and goes on behind.

    Raises:
        InputError: at `training.archive`, where more of this worker's part of an archive already
            lies or nothing can be written. Other workers may have begun, so that whether any is
            there is for `refuse_existing` to find out before one of them starts.
    """

    def __init__(
        self,
        uri: str,
        contents: Contents,
        *,
        rank: int = 0,
        shards: int = 0,
        rows_per_shard: int = 2**15,
    ) -> None:
        assert rows_per_shard > 0
        self._contents = contents
        self._rows_per_shard = rows_per_shard
        self._rows_per_group = min(_GROUP_ROWS, self._contents.rows_in(_GROUP_BYTES))
        self._rank = rank
        self._waiting: list[Any] = []
        self._shard: _Shard | None = None
        self.shards = shards
        """Complete ones."""
        self._place = Place(uri, "training.archive")
        self._place.refuse(shards_of(rank), but=shards)
        self._place.make()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(
        self,
        *,
        step: int,
        first_column: int,
        images: Tensor,
        asked_for: Tensor,
        homes: Tensor,
        logits: Mapping[str, Tensor],
    ) -> None:
        """Add consecutive columns of one step's batch.

        Args:
            first_column: global index, within the batch, of the first image.
            images: (N, C, H, W) in [0, 1].
            asked_for: (N, labels) of zeros and ones.
            homes: (N,) int64, the number of the teacher that an image was made for, or -1.
            logits: per teacher (N, K).

        Raises:
            RunFailed: the archive cannot be written any more.
        """
        self._waiting.append(
            _table(self._contents, step, first_column, images, asked_for, homes, logits)
        )
        self._write(least=self._rows_per_group)

    def close(self) -> None:
        """Write what waits, and complete the last shard; more may be added, to a new one.

        Raises:
            RunFailed: the archive cannot be written any more.
        """
        self._write(least=1)
        self._complete()

    def _write(self, *, least: int) -> None:
        """Turn what waits into row groups, as long as it is at least so many rows."""
        if sum(table.num_rows for table in self._waiting) < least:
            return
        waiting = pyarrow.concat_tables(self._waiting)
        while waiting.num_rows >= least:
            shard = self._open_shard()
            group = waiting.slice(0, min(self._rows_per_group, self._rows_per_shard - shard.rows))
            with self._failing():
                shard.write(group)
            waiting = waiting.slice(group.num_rows)
            if shard.rows == self._rows_per_shard:
                self._complete()
        self._waiting = [waiting] if waiting.num_rows else []

    def _open_shard(self) -> _Shard:
        if self._shard is None:
            name = shard_name(self._rank, self.shards)
            with self._failing():
                self._shard = _Shard(self._place, name, self._contents.schema)
        assert self._shard is not None
        return self._shard

    def _complete(self) -> None:
        if self._shard is not None:
            with self._failing():
                self._shard.complete()
            self._shard = None
            self.shards += 1

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except UNREACHABLE as error:
            self._waiting, self._shard = [], None  # closing shall not try again
            what = f"{self._place} cannot be written any more: {self._place.plain(error)}"
            raise RunFailed(" ".join(what.split())) from error


class _Shard:
    """One Parquet file while it is written."""

    def __init__(self, place: Place, name: str, schema: Any) -> None:
        self.rows = 0
        self._place, self._name = place, name
        self._stream = place.create(name)
        # A dictionary is only in the way of numbers that never come again.
        self._writer = parquet.ParquetWriter(
            self._stream,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["asked.list.element"],
            write_page_checksum=True,
        )

    def write(self, group: Any) -> None:
        """Append a row group."""
        self._writer.write_table(group, row_group_size=group.num_rows)
        self.rows += int(group.num_rows)

    def complete(self) -> None:
        """Let readers see it."""
        self._writer.close()
        self._stream.close()
        self._place.publish(self._name)


def _table(
    contents: Contents,
    step: int,
    first_column: int,
    images: Tensor,
    asked_for: Tensor,
    homes: Tensor,
    logits: Mapping[str, Tensor],
) -> Any:
    schema, count = contents.schema, len(images)
    assert images.shape[1:] == contents.shape
    assert asked_for.shape == (count, len(contents.labels))
    assert logits.keys() == {teacher.name for teacher in contents.teachers}
    columns = [
        _images(images, schema.field("image").type),
        np.full(count, step, dtype=np.int32),
        np.arange(first_column, first_column + count, dtype=np.int32),
        _numpy(homes, torch.int16),
        _names(asked_for, contents.labels, schema.field("asked").type),
    ]
    for teacher in contents.teachers:
        said = logits[teacher.name]
        assert said.shape == (count, len(teacher.labels))
        kind = schema.field(logits_of(teacher.name)).type
        flat = pyarrow.array(_numpy(said, torch.float32).reshape(-1))
        columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, type=kind))
    return pyarrow.table(columns, schema=schema)


def _images(images: Tensor, kind: Any) -> Any:
    pixels = _numpy(images, torch.float16).astype("<f2", copy=False)
    buffers = [None, pyarrow.py_buffer(np.ascontiguousarray(pixels))]
    return pyarrow.Array.from_buffers(kind, len(images), buffers)


def _names(asked_for: Tensor, labels: Sequence[str], kind: Any) -> Any:
    chosen = _numpy(asked_for, torch.bool)
    ends = np.cumsum(chosen.sum(axis=1), dtype=np.int32)
    values = pyarrow.array(labels, pyarrow.string()).take(np.nonzero(chosen)[1])
    return pyarrow.ListArray.from_arrays(np.append(np.int32(0), ends), values, type=kind)


def _numpy(values: Tensor, kind: torch.dtype) -> npt.NDArray[Any]:
    """A copy, since rows wait and their maker may go on using the tensor."""
    copied: npt.NDArray[Any] = values.detach().to("cpu", kind, copy=True).numpy()
    return copied
