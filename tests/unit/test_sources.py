"""Where networks and weights come from, and every way in which they can be wrong."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dfka_dist.config import PRESETS, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models.backbones import ConvNet
from dfka_dist.models.sources import build, load_state, read_all_weights, read_weights

MakeTeacher = Callable[..., TeacherSpec]

OWN_NETWORKS = """
import torch

LABELS = 3
class Own(torch.nn.Linear):
    def __init__(self, inputs, outputs=3):
        super().__init__(inputs, outputs)
def no_network():
    return "a network"
def picky(width):
    raise ValueError(f"width {width} is too small")
"""


@pytest.fixture
def spec(make_teacher: MakeTeacher) -> TeacherSpec:
    return make_teacher()


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_networks.py").write_text(OWN_NETWORKS)
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


def weighted(spec: TeacherSpec, path: Path) -> TeacherSpec:
    return spec.model_copy(update={"weights": str(path)})


def sourced(spec: TeacherSpec, source: str, **arguments: Any) -> TeacherSpec:
    return spec.model_copy(update={"source": source, "arguments": arguments})


def state_of(spec: TeacherSpec) -> dict[str, torch.Tensor]:
    assert spec.weights is not None
    state: dict[str, torch.Tensor] = load_file(spec.weights)
    return state


def reading_refused(spec: TeacherSpec) -> InputError:
    with pytest.raises(InputError) as caught:
        read_weights(spec, "teachers.1")
    return caught.value


def building_refused(spec: TeacherSpec) -> InputError:
    with pytest.raises(InputError) as caught:
        build(spec, "teachers.1")
    return caught.value


# weights


def test_safetensors_are_read(spec: TeacherSpec) -> None:
    state = read_weights(spec, "teachers.0").state
    assert state.keys() == state_of(spec).keys()
    assert all(torch.equal(state[name], value) for name, value in state_of(spec).items())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_files_are_read(spec: TeacherSpec, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(state_of(spec), path)
    state = read_weights(weighted(spec, path), "teachers.0").state
    assert all(torch.equal(state[name], value) for name, value in state_of(spec).items())


def test_torch_files_may_hold_the_state_inside_a_checkpoint(
    spec: TeacherSpec, tmp_path: Path
) -> None:
    torch.save({"epoch": 3, "state_dict": state_of(spec)}, tmp_path / "x.pt")
    state = read_weights(weighted(spec, tmp_path / "x.pt"), "teachers.0").state
    assert state.keys() == state_of(spec).keys()


def test_weights_may_be_a_file_uri(spec: TeacherSpec) -> None:
    state = read_weights(
        weighted(spec, Path()).model_copy(update={"weights": f"file://{spec.weights}"}),
        "teachers.0",
    ).state
    assert state.keys() == state_of(spec).keys()


def test_preset_weights_are_found_beside_the_jobs(spec: TeacherSpec) -> None:
    name = "digits/low_digits.safetensors"
    found = read_weights(spec.model_copy(update={"weights": f"preset:{name}"}), "teachers.0")
    assert found.sha256 == hashlib.sha256((PRESETS / name).read_bytes()).hexdigest()


def test_weights_of_all_teachers_are_read_by_name(make_teacher: MakeTeacher) -> None:
    specs = [make_teacher("one"), make_teacher("two")]
    assert list(read_all_weights(specs)) == ["one", "two"]


def test_error_names_which_of_the_teachers_it_is(make_teacher: MakeTeacher) -> None:
    specs = [make_teacher("one"), weighted(make_teacher("two"), Path("/none.pt"))]
    with pytest.raises(InputError, match=r"^teachers\.1\.weights: /none\.pt does not exist"):
        read_all_weights(specs)


def test_teacher_without_weights_is_refused(spec: TeacherSpec) -> None:
    error = reading_refused(spec.model_copy(update={"weights": None}))
    assert (error.key, error.what) == ("teachers.1.weights", "is missing")


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt"])
def test_missing_file_is_refused(spec: TeacherSpec, tmp_path: Path, name: str) -> None:
    assert "does not exist" in reading_refused(weighted(spec, tmp_path / name)).what


def test_folder_in_place_of_a_file_is_refused(spec: TeacherSpec, tmp_path: Path) -> None:
    assert "cannot be read" in reading_refused(weighted(spec, tmp_path)).what


def test_place_of_an_unknown_kind_is_refused(spec: TeacherSpec) -> None:
    error = reading_refused(spec.model_copy(update={"weights": "nowhere://x/y.pt"}))
    assert "cannot be read" in error.what


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_are_refused(spec: TeacherSpec, tmp_path: Path, share: float) -> None:
    assert spec.weights is not None
    content = Path(spec.weights).read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: int(len(content) * share)])
    assert "truncated" in reading_refused(weighted(spec, path)).what


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_torch_file_is_refused(spec: TeacherSpec, tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.pt"
    torch.save(state_of(spec), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "truncated" in reading_refused(weighted(spec, path)).what


def test_text_called_a_torch_file_is_refused(spec: TeacherSpec, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("these are no weights")
    assert reading_refused(weighted(spec, tmp_path / "x.pt")).key == "teachers.1.weights"


class _Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickle_called_a_torch_file_is_refused_unopened(spec: TeacherSpec, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps(_Trap(tmp_path / "opened"), protocol=2))
    error = reading_refused(weighted(spec, tmp_path / "x.pt"))
    assert error.key == "teachers.1.weights"
    assert not (tmp_path / "opened").exists()


def test_torch_file_with_a_whole_network_is_refused(spec: TeacherSpec, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert "pickled code" in reading_refused(weighted(spec, tmp_path / "x.pt")).what


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
def test_torch_file_without_a_state_dict_is_refused(
    spec: TeacherSpec, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert "holds no state dict" in reading_refused(weighted(spec, tmp_path / "x.pt")).what


@pytest.mark.parametrize("suffix", ["", ".pkl", ".bin", ".onnx", ".txt"])
def test_weights_with_another_suffix_are_refused(
    spec: TeacherSpec, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    save_file(state_of(spec), path)
    assert "neither .safetensors nor .pt" in reading_refused(weighted(spec, path)).what


# state into a network


def refusal_of_state(network: nn.Module, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(InputError) as caught:
        load_state(network, state, "teachers.1")
    assert caught.value.key == "teachers.1.weights"
    return caught.value.what


def test_state_finds_its_places(spec: TeacherSpec) -> None:
    network = build(spec, "teachers.0")
    load_state(network, state_of(spec), "teachers.0")
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state_of(spec).items())


def test_counters_of_batches_may_be_missing(spec: TeacherSpec) -> None:
    network = build(spec, "teachers.0")
    state = {k: v for k, v in state_of(spec).items() if not k.endswith("num_batches_tracked")}
    load_state(network, state, "teachers.0")
    assert torch.equal(network.state_dict()["classifier.bias"], state["classifier.bias"])


def test_tensor_that_is_missing_is_named() -> None:
    what = refusal_of_state(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)})
    assert what.endswith("architecture: bias is missing")


def test_tensor_that_has_no_place_is_named() -> None:
    state = nn.Linear(2, 3).state_dict() | {"scale": torch.zeros(1)}
    assert refusal_of_state(nn.Linear(2, 3), state).endswith("architecture: scale has no place")


def test_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    what = refusal_of_state(nn.Linear(2, 3), nn.Linear(4, 3).state_dict())
    assert what.endswith("architecture: weight is [3, 4] for [3, 2]")


def test_of_many_wrong_tensors_four_are_named() -> None:
    what = refusal_of_state(nn.Linear(2, 3), ConvNet(widths=[4]).state_dict())
    assert what.count(";") == 3
    assert what.endswith(" more")


def test_refused_state_leaves_the_network_alone() -> None:
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    refusal_of_state(network, {"weight": torch.zeros(3, 2)})
    assert torch.equal(network.weight, before)


# networks


def test_builtin_network_is_as_wide_as_its_labels_are_many(make_teacher: MakeTeacher) -> None:
    network = build(make_teacher(labels=["a", "b"], channels=3), "teachers.0")
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 2)


def test_unknown_builtin_network_is_refused_by_those_that_exist(spec: TeacherSpec) -> None:
    error = building_refused(sourced(spec, "builtin:alexnet"))
    assert (error.key, error.remedy) == ("teachers.1.source", "one of convnet, resnet")


def test_builtin_network_refuses_arguments_it_does_not_take(spec: TeacherSpec) -> None:
    error = building_refused(sourced(spec, "builtin:convnet", depth=3))
    assert error.key == "teachers.1.arguments"
    assert "depth" in error.what


def test_network_may_come_from_ones_own_module(spec: TeacherSpec, own_module: str) -> None:
    network = build(sourced(spec, f"{own_module}:Own", inputs=5), "teachers.0")
    assert network(torch.zeros(2, 5)).shape == (2, 3)


def test_missing_module_is_refused(spec: TeacherSpec) -> None:
    error = building_refused(sourced(spec, "not_there.at_all:Net"))
    assert error.key == "teachers.1.source"
    assert "cannot import not_there.at_all" in error.what


def test_module_that_cannot_be_imported_itself_is_refused(
    spec: TeacherSpec, own_module: str
) -> None:
    error = building_refused(sourced(spec, "own_broken:Net"))
    assert "a_package_that_is_not_there" in error.what


def test_missing_callable_is_refused(spec: TeacherSpec, own_module: str) -> None:
    error = building_refused(sourced(spec, f"{own_module}:Missing"))
    assert error.what == "own_networks has no 'Missing'"


def test_what_cannot_be_called_is_refused(spec: TeacherSpec, own_module: str) -> None:
    assert "cannot be called" in building_refused(sourced(spec, f"{own_module}:LABELS")).what


def test_callable_that_gives_no_network_is_refused(spec: TeacherSpec, own_module: str) -> None:
    error = building_refused(sourced(spec, f"{own_module}:no_network"))
    assert error.what == "own_networks:no_network gives a str"


def test_arguments_that_a_callable_lacks_are_named(spec: TeacherSpec, own_module: str) -> None:
    error = building_refused(sourced(spec, f"{own_module}:Own"))
    assert error.key == "teachers.1.arguments"
    assert "inputs" in error.what


def test_arguments_that_a_callable_refuses_are_refused_in_its_words(
    spec: TeacherSpec, own_module: str
) -> None:
    error = building_refused(sourced(spec, f"{own_module}:picky", width=1))
    assert error.what == "width 1 is too small"
