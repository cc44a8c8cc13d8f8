"""Whatever is broken in one place: exit code 2 or 3, one line, no traceback, no file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Ended
from safetensors.torch import load_file

from dfka_dist.loading import dump, load

Call = Callable[..., Ended]
Path_ = tuple[str | int, ...]
"""Keys from the root of a configuration to a value."""

OPEN = {"arguments", "deepspeed", "node_labels", "evaluations"}
"""Mappings whose keys are the user's."""
WRONG: list[Any] = [
    {"unexpected": [None]},
    [[]],
    "\x00 no such thing \u2028",
    -7,
    float("nan"),
    1e300,
    10**400,
]


def values(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """All values of a configuration that are no mappings or lists of them."""
    if isinstance(tree, dict) and (not path or path[-1] not in OPEN):
        for key, value in tree.items():
            yield from values(value, (*path, key))
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for index, value in enumerate(tree):
            yield from values(value, (*path, index))
    else:
        yield path, tree


def at(tree: Any, path: Path_) -> Any:
    """The value that lies there."""
    for key in path:
        tree = tree[key]
    return tree


def is_certainly_wrong(old: Any, new: Any) -> bool:
    """No value of one type may be of the other, and no number of this size is wanted anywhere."""
    if isinstance(old, bool) or old is None:
        return isinstance(new, dict | list)
    if isinstance(old, int | float):
        return True
    if isinstance(old, str):
        return not isinstance(new, str)
    return isinstance(new, str | int | float)


@pytest.fixture(scope="module")
def whole(write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny run with every key that there is."""
    tree: dict[str, Any] = yaml.safe_load(dump(load(write(tmp_path_factory.mktemp("whole")))))
    return tree


@pytest.fixture(scope="module")
def breaks(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Configurations with one wrong value, or one key that nobody knows."""
    places = list(values(whole))
    wrong = [(path, new) for path, old in places for new in WRONG if is_certainly_wrong(old, new)]
    sections = {path[:-1] for path, _ in places}

    def replaced(pair: tuple[Path_, Any]) -> dict[str, Any]:
        tree = copy.deepcopy(whole)
        at(tree, pair[0][:-1])[pair[0][-1]] = pair[1]
        return tree

    def enlarged(pair: tuple[Path_, str]) -> dict[str, Any]:
        tree = copy.deepcopy(whole)
        at(tree, pair[0])[f"x{pair[1]}"] = 1
        return tree

    known = [path for path in sections if isinstance(at(whole, path), dict)]
    return st.one_of(
        st.sampled_from(wrong).map(replaced),
        st.tuples(st.sampled_from(sorted(known, key=str)), st.text(max_size=8)).map(enlarged),
    )


def test_a_configuration_that_is_broken_in_one_place_is_refused_in_one_line(
    call: Call, breaks: st.SearchStrategy[dict[str, Any]], tmp_path: Path
) -> None:
    output, file = tmp_path / "output", tmp_path / "run.yaml"

    @settings(
        max_examples=250,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(tree=breaks)
    def refused(tree: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        ended = call("amalgamate", "--config", file, "--output", output, "--dry-run")
        assert ended.refusal.startswith("error: ") and "Traceback" not in ended.err
        assert not output.exists()

    refused()


def harmed(whole: bytes, index: int) -> bytes:
    """One of ten ways to break a file: cut, or with bytes that are others or too many."""
    place = len(whole) * index // 10
    return [
        whole[:place],
        whole[: place // 100],
        bytes(64 + index) + whole[64 + index :],
        b"\xff" * 9 + whole,
        whole[: len(whole) // 2] + whole[: len(whole) // 2 - 8],
    ][index % 5]


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_that_are_broken_are_refused_in_one_line(
    call: Call,
    tiny: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
    ending: str,
    index: int,
) -> None:
    low, high = tiny["teachers"]
    good = tmp_path / f"good.{ending}"
    if ending == "pt":
        torch.save(load_file(low["weights"]), good)
    else:
        good.write_bytes(Path(low["weights"]).read_bytes())
    bad = tmp_path / f"bad.{ending}"
    bad.write_bytes(harmed(good.read_bytes(), index))
    config = write(tmp_path, teachers=[low | {"weights": str(bad)}, high])
    ended = call("amalgamate", "--config", config, "--output", tmp_path / "output", "--dry-run")
    line = ended.refusal
    assert line.startswith("error: teachers.") and not (tmp_path / "output").exists()
