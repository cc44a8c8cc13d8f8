"""A folder on any file system that pyarrow knows, and how a file appears there."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pyarrow import ArrowException, fs

from dfka_dist.errors import InputError
from dfka_dist.folders import is_writable

ENDING = ".parquet"
UNREACHABLE = (OSError, ArrowException, ValueError)
"""What pyarrow raises where something is missing, broken or forbidden."""
_PARTIAL = ".partial"
_RENAMING = ("local", "hdfs")
"""Where a file can be seen half written, and renaming is a single act. An object store shows a file
when it is closed, and would have to copy it to give it another name."""


def refuse_existing(uri: str, key: str) -> None:
    """Make sure that a new archive can begin at a place. Nothing is changed there.

    Args:
        uri: absolute path or `pyarrow.fs` URI of a folder, which need not be there yet.
        key: configuration key that an error names.

    Raises:
        InputError: the place holds Parquet files, is a file, or cannot be reached.
    """
    Place(uri, key).refuse("")


def refuse_unwritable(uri: str, key: str) -> None:
    """Make sure, as far as that can be seen without writing, that an archive can be written.

    Raises:
        InputError: on a disk, the folder or the nearest one above it cannot be written.
    """
    Place(uri, key).refuse_unwritable()


def inside(uri: str, name: str) -> str:
    """The folder of a name in another, which is an absolute path or a `pyarrow.fs` URI."""
    if "://" not in uri:
        return f"{uri.rstrip('/')}/{name}"
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


class Place:
    """A folder by its absolute path or `pyarrow.fs` URI.

    Args:
        key: configuration key that errors name.

    Raises:
        InputError: there is no such kind of file system.
    """

    def __init__(self, uri: str, key: str) -> None:
        self._uri, self._key = uri, key
        # A URI can hold a password, which belongs in no message.
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        self._shown = f"{parts.scheme}://{host}{parts.path}" if "://" in uri else uri
        try:
            local = "://" not in uri
            files, folder = (fs.LocalFileSystem(), uri) if local else fs.FileSystem.from_uri(uri)
        except UNREACHABLE as error:
            raise self.unreachable(error) from None
        self.files: Any = files
        """pyarrow's file system."""
        self.folder: str = folder.rstrip("/")
        """The path there."""
        self._renaming = files.type_name in _RENAMING

    def __str__(self) -> str:
        return self._shown

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine, which others may not share."""
        return bool(self.files.type_name == "local")

    def names(self) -> list[str]:
        """Of all that lies there, sorted.

        Raises:
            InputError: the place cannot be listed.
        """
        try:
            inside = self.files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        except UNREACHABLE as error:
            raise self.unreachable(error) from None
        return sorted(info.base_name for info in inside)

    def shards(self) -> list[str]:
        """Names of the complete Parquet files, sorted.

        Raises:
            InputError: the place cannot be listed.
        """
        return [name for name in self.names() if name.endswith(ENDING)]

    def exists(self) -> bool:
        """Whether there is anything at this place."""
        found: bool = self.files.get_file_info(self.folder).type != fs.FileType.NotFound
        return found

    def refuse(self, prefix: str, but: int = 0) -> None:
        """Refuse a place with Parquet files whose names begin with `prefix`.

        Args:
            but: so many are expected.

        Raises:
            InputError: it has more, or cannot be listed.
        """
        if sum(name.startswith(prefix) for name in self.shards()) > but:
            raise self.error("already holds an archive", "another place")

    def refuse_unwritable(self) -> None:
        """Refuse a folder of a disk that cannot be made or written. Nothing is changed there.

        Raises:
            InputError: it cannot.
        """
        if self.is_local and not is_writable(Path(self.folder)):
            raise self.error("cannot be written", "a place where files can be written")

    def make(self) -> None:
        """Make the folder, and prove that files can be written there.

        Raises:
            InputError: it cannot.
        """
        try:
            self.files.create_dir(self.folder, recursive=True)  # an object store refuses here
            if self._renaming:
                probe = f"{self.folder}/.writable{_PARTIAL}"
                self.files.open_output_stream(probe).close()
                self.files.delete_file(probe)
        except UNREACHABLE as error:
            raise self.unwritable(error) from None

    def create(self, name: str) -> Any:
        """A stream for a new file, which readers see after `publish`."""
        return self.files.open_output_stream(self._path(name) + self._suffix)

    def publish(self, name: str) -> None:
        """Give a file that was closed its own name."""
        if self._renaming:
            self.files.move(self._path(name) + self._suffix, self._path(name))

    def put(self, folder: Path, name: str) -> None:
        """Copy a file, or all that is in a folder, out of a folder of this machine, if it is there.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: the place cannot be written.
        """
        for source in sorted([folder / name, *(folder / name).rglob("*")]):
            if source.is_file():
                there = str(source.relative_to(folder))
                if self._renaming:
                    self.files.create_dir(self._path(there).rpartition("/")[0], recursive=True)
                target = self._path(there) + self._suffix
                fs.copy_files(str(source), target, destination_filesystem=self.files)
                self.publish(there)

    def fetch(self, folder: Path, name: str) -> None:
        """Copy all that is in a folder here into the folder of that name in one of this machine;
        nothing if it is not there.

        Raises:
            OSError, pyarrow.ArrowException, ValueError: it cannot be read, or not be written.
        """
        inside = fs.FileSelector(self._path(name), recursive=True, allow_not_found=True)
        for info in self.files.get_file_info(inside):
            if info.type == fs.FileType.File and not info.path.endswith(_PARTIAL):
                target = folder / info.path.removeprefix(f"{self.folder}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.copy_files(info.path, str(target), source_filesystem=self.files)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.files.delete_file(self._path(name))

    def drop(self, name: str) -> None:
        """Remove a folder, if it is there."""
        if self.files.get_file_info(self._path(name)).type != fs.FileType.NotFound:
            self.files.delete_dir(self._path(name))

    def open(self, name: str) -> Any:
        """A file for random access."""
        return self.files.open_input_file(self._path(name))

    def error(self, what: str, remedy: str) -> InputError:
        """An error about this place."""
        return InputError(self._key, f"{self._shown} {what}", remedy)

    def unreachable(self, error: BaseException, name: str = "") -> InputError:
        """An error about this place, or a file there, because of what pyarrow said."""
        what = f"{name} cannot be read: {self.plain(error)}".lstrip()
        return self.error(what, "a folder or a pyarrow.fs URI that can be read")

    def unwritable(self, error: BaseException) -> InputError:
        """An error about this place, because of what pyarrow said when it was written to."""
        what = f"cannot be written: {self.plain(error)}"
        return self.error(what, "a place where files can be written")

    def plain(self, error: BaseException) -> str:
        """What pyarrow said, without what nobody may see."""
        return str(error).replace(self._uri, self._shown)

    @property
    def _suffix(self) -> str:
        return _PARTIAL if self._renaming else ""

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"
