"""What a Hugging Face model's own files say of a teacher, so that nobody has to write it again.

`complete` reads them once, before the configuration is validated. From then on the configuration
says everything: `arguments.config` the architecture, `weights` the file.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfka_dist.errors import InputError
from dfka_dist.loading import located
from dfka_dist.models.huggingface import HUB_ID, IGNORED, check_architecture, downloaded

Tree = dict[str, Any]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a model's weights may lie in its folder; the first that exists is taken."""

_TASKS = {
    "None": "single_label",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_PREPROCESSOR = "preprocessor_config.json"
_DESCRIPTION = ("config.json", _PREPROCESSOR)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def complete(tree: Tree, folder: Path) -> Tree:
    """The tree with what the files of its `hf:` teachers say, wherever the user said nothing.

    Teachers that bring `arguments.config` were completed before and stay as they are.

    Args:
        tree: a run as plain data, as the user wrote it and not validated yet.
        folder: where relative paths start.

    Raises:
        InputError: a file is missing or broken, or does not describe an image classifier.
    """
    teachers = tree.get("teachers")
    if not isinstance(teachers, list):
        return tree
    completed = [
        _completed(teacher, folder, f"teachers.{index}") if _wanting(teacher) else teacher
        for index, teacher in enumerate(teachers)
    ]
    return tree | {"teachers": completed}


def _wanting(teacher: object) -> bool:
    """Whether it is an `hf:` teacher whose files were not read yet."""
    if not isinstance(teacher, dict) or not str(teacher.get("source")).startswith("hf:"):
        return False
    arguments = teacher.get("arguments")
    return arguments is None or (isinstance(arguments, dict) and "config" not in arguments)


def _completed(teacher: Tree, folder: Path, key: str) -> Tree:
    own = "weights" in teacher  # or none on purpose: an archive says what it said
    name = teacher["source"].removeprefix("hf:")
    place, source = _found(name, folder, f"{key}.source", weights=not own)
    config = _read(place / "config.json", f"{key}.source")
    check_architecture(config, f"{key}.source")
    whole = {name: value for name, value in teacher.items() if value is not None}
    whole["source"] = source
    if "labels" not in whole:
        whole["labels"] = _labels(config, f"{key}.labels")
    if "task" not in whole:
        whole["task"] = _task(config, f"{key}.task")
    if not own:
        whole["weights"] = _weights(place, f"{key}.weights")
    if isinstance(whole.setdefault("input", {}), dict):
        whole["input"] = _input(place, config, whole["input"], f"{key}.input")
    whole["arguments"] = {**whole.get("arguments", {}), "config": _architecture(config)}
    return whole


def _found(name: str, folder: Path, key: str, *, weights: bool) -> tuple[Path, str]:
    """The folder with a model's files, and the source that finds it from anywhere.

    Args:
        weights: whether those of the hub are wanted, too.
    """
    place = Path(str(located(name, folder)))
    if place.is_dir():
        return place, f"hf:{place}"
    if place.exists() or not HUB_ID.fullmatch(name):
        what = "is no folder" if place.exists() else "does not exist"
        raise InputError(key, f"{place} {what}", "a folder with config.json, or a hub id")
    fetched = downloaded(name, key, [*_DESCRIPTION, *(_SAFETENSORS if weights else ())])
    if weights and not any((fetched / file).exists() for file in WEIGHT_FILES):
        fetched = downloaded(name, key, _TORCH_FILES)
    return fetched, f"hf:{name}"


def _read(path: Path, key: str) -> Tree:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            key, f"{path} does not exist", "the folder that save_pretrained wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(key, f"{path} cannot be read: {error}", "an intact JSON file") from error
    if not isinstance(content, dict):
        raise InputError(key, f"{path} holds no mapping", "an intact JSON file")
    return content


def _architecture(config: Mapping[str, Any]) -> Tree:
    """What `build` needs of a config.json."""
    kept = {name: value for name, value in config.items() if name not in IGNORED}
    # Two is what transformers takes where nothing is said.
    count = len(config.get("id2label") or "??")
    return {"num_labels": count} | kept


def _labels(config: Mapping[str, Any], key: str) -> list[str]:
    """The names of `id2label` in the order of their ids; those that stand twice, with their id."""
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise InputError(
            key, "are missing, and config.json has no id2label", "a list, one name for each logit"
        )
    count = config.get("num_labels", len(names))
    if set(names) != {str(index) for index in range(len(names))} or count != len(names):
        raise InputError(
            key,
            f"config.json has {len(names)} names in id2label for num_labels {count}",
            f"ids from 0 to {len(names) - 1} and as many labels, or a list here",
        )
    found = [str(names[str(index)]) for index in range(len(names))]
    if all(_PLACEHOLDER.fullmatch(name) for name in found):
        raise InputError(
            key,
            f"config.json calls them {found[0]} to {found[-1]}, as every model that nobody named",
            "their names here, in the order of the logits",
        )
    repeated = {name for name, count in Counter(found).items() if count > 1}
    return [f"{n} ({i})" if n in repeated else n for i, n in enumerate(found)]


def _task(config: Mapping[str, Any], key: str) -> str:
    problem = str(config.get("problem_type"))
    if problem not in _TASKS:
        raise InputError(key, f"is {problem!r} in config.json", "single_label or multi_label, here")
    return _TASKS[problem]


def _weights(place: Path, key: str) -> str:
    for name in WEIGHT_FILES:
        if (place / name).exists():
            return str(place / name)
    raise InputError(key, f"{place} holds none", f"one of {', '.join(WEIGHT_FILES)}")


def _input(place: Path, config: Mapping[str, Any], said: Tree, key: str) -> Tree:
    """What the network eats: what the user said, then what its preprocessor's file says."""
    known = {"channels": config.get("num_channels", 3)} | said
    if {"size", "mean", "std"} <= known.keys():
        return known
    file = place / _PREPROCESSOR
    if not file.exists():
        if said:
            return known
        raise InputError(
            key, f"is missing, and {file} does not exist", "channels, size, mean and std"
        )
    found = _read(file, key)
    if "size" not in known:
        known["size"] = _size(found, f"{key}.size")
    if not {"mean", "std"} <= known.keys():
        known = _normalisation(found, key) | known
    return known


def _size(found: Tree, key: str) -> int:
    """The side of the square that reaches the network; where it is cropped, that of the crop."""
    cropped = found.get("do_center_crop") and found.get("crop_size") is not None
    size = found.get("crop_size" if cropped else "size")
    sides = [size]
    if isinstance(size, dict):
        names = ("height", "width") if "height" in size else ("shortest_edge",)
        sides = [size.get(name) for name in names]
    side = sides[0]
    if type(side) is not int or sides != [side] * len(sides):
        raise InputError(key, f"{_PREPROCESSOR} says {size!r}", "one number, the side of a square")
    return side


def _normalisation(found: Tree, key: str) -> Tree:
    """Mean and std for images in [0, 1]."""
    factor = found.get("rescale_factor", 1 / 255)
    usual = type(factor) in (int, float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    if not usual or found.get("do_rescale") is False or found.get("rescale_offset"):
        raise _unusual("does not scale images to [0, 1]", key)
    if found.get("do_flip_channel_order"):
        raise _unusual("wants channels in the order BGR", key)
    if not found.get("do_normalize", True):
        return {"mean": [0.0], "std": [1.0]}
    mean, std = (_numbers(found, f"image_{name}", f"{key}.{name}") for name in ("mean", "std"))
    if found.get("include_top"):  # EfficientNet's own: what is normalised is divided once more
        std = [value * value for value in std]
    return {"mean": mean, "std": std}


def _numbers(found: Tree, name: str, key: str) -> list[float]:
    value = found.get(name)
    numbers: list[Any] = value if isinstance(value, list) and value else [value]
    if not all(type(number) in (int, float) for number in numbers):
        raise InputError(key, f"{_PREPROCESSOR} has no numbers in {name}", "numbers, written here")
    return [float(number) for number in numbers]


def _unusual(what: str, key: str) -> InputError:
    return InputError(
        key, f"{_PREPROCESSOR} {what}", "mean and std for RGB in [0, 1], written here"
    )
