"""The synthesized set as an artefact: every image and what the teachers said of it, in Parquet.

An archive is a folder of shards, on a disk or at any `pyarrow.fs` URI. Every worker writes shards
of its own; who trains a target from an archive later needs neither generator nor teachers.
"""

from dfka_dist.archive.contents import ArchivedTeacher, Contents
from dfka_dist.archive.going_on import keep_only, refuse_another_run
from dfka_dist.archive.reader import Archive, ArchivedBatch
from dfka_dist.archive.writer import ArchiveWriter
from dfka_dist.places import refuse_existing, refuse_unwritable

__all__ = [
    "Archive",
    "ArchiveWriter",
    "ArchivedBatch",
    "ArchivedTeacher",
    "Contents",
    "keep_only",
    "refuse_another_run",
    "refuse_existing",
    "refuse_unwritable",
]
