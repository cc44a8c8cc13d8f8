"""Teachers that are Hugging Face image classifiers: what their files say, and what they compute."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hugging_face import KINDS, blocks, classifier, save
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfka_dist import commandline
from dfka_dist.config import TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.loading import dump, load
from dfka_dist.models.completion import complete
from dfka_dist.models.sources import build, load_state, read_weights
from dfka_dist.models.target import Architecture, BranchPoint, TargetNet, remembered, version
from dfka_dist.teachers.interface import Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.branching import build_target

SHAPES = {
    "resnet": [(4, 4, 4), (6, 2, 2), (8, 1, 1)],
    "convnext": [(4, 16, 16), (6, 8, 8), (8, 4, 4)],
}
LABELS = ["owl", "cat", "dog"]
INPUT = {"channels": 3, "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def originals() -> dict[str, nn.Module]:
    return {kind: classifier(kind, LABELS, "multi_label") for kind in KINDS}


@pytest.fixture(scope="session")
def saved(
    originals: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return {kind: save(originals[kind], tmp_path_factory.mktemp(kind) / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def teachers(saved: dict[str, Path]) -> dict[str, Teacher]:
    return {kind: loaded(completed(folder)) for kind, folder in saved.items()}


@pytest.fixture
def make_folder(saved: dict[str, Path], tmp_path: Path) -> MakeFolder:
    """A copy of the saved ResNet with other things in its files; None takes a key away."""

    def make(file: str = "config.json", **changes: Any) -> Path:
        folder = tmp_path / "pets"
        if not folder.exists():
            shutil.copytree(saved["resnet"], folder)
        content = json.loads((folder / file).read_text()) | changes
        kept = {name: value for name, value in content.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))
        return folder

    return make


def configured(place: Path, source: str, **teacher: Any) -> TeacherSpec:
    """The one teacher of a configuration in a folder, loaded as the jobs do it."""
    written = {"name": "pets", "source": source, "blocks": blocks("resnet")} | teacher
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "test"}, "teachers": [written]}))
    return load(path, complete=complete).teachers[0]


def completed(folder: Path, **teacher: Any) -> TeacherSpec:
    kind = "convnext" if "convnext" in folder.name else "resnet"
    return configured(folder.parent, f"hf:{folder}", **({"blocks": blocks(kind)} | teacher))


def loaded(spec: TeacherSpec) -> Teacher:
    return Teacher(spec, "teachers.0", read_weights(spec, "teachers.0"))


def refused(folder: Path, **teacher: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        completed(folder, **teacher)
    assert "\n" not in str(caught.value)
    return caught.value


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def said_by(original: nn.Module, teacher: Teacher) -> Tensor:
    """What transformers' own network says of the pictures."""
    with torch.no_grad():
        logits: Tensor = original(teacher.preprocessing(pictures())).logits
    return logits


# what it computes


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_says_what_the_network_says_in_transformers(
    teachers: dict[str, Teacher], originals: dict[str, nn.Module], kind: str
) -> None:
    said = teachers[kind].forward(pictures(), wanted=Wanted()).logits
    assert said is not None and said.shape == (3, 3)
    assert torch.allclose(said, said_by(originals[kind], teachers[kind]), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_entered_at_its_stages(
    teachers: dict[str, Teacher], kind: str, depth: int
) -> None:
    teacher = teachers[kind]
    inside = list(teacher.chain.walk(teacher.preprocessing(pictures())))
    said = teacher.forward(inside[depth - 1], depth=depth, wanted=Wanted()).logits
    assert said is not None and torch.allclose(said, inside[-1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_at_the_images_is_that_of_the_whole_network(
    teachers: dict[str, Teacher], originals: dict[str, nn.Module], kind: str
) -> None:
    teacher, images, same = teachers[kind], pictures(), pictures()
    logits = teacher.forward(images.requires_grad_(), wanted=Wanted(gradient=True)).logits
    whole = originals[kind](teacher.preprocessing(same.requires_grad_())).logits
    assert logits is not None
    found, expected = (
        torch.autograd.grad(said[:, 0].sum(), given)[0]
        for said, given in ((logits, images), (whole, same))
    )
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_have_the_shapes_of_their_features(teachers: dict[str, Teacher], kind: str) -> None:
    assert teachers[kind].description.shapes == ((3, 32, 32), *SHAPES[kind])


def test_batch_norm_layers_are_known_by_the_names_of_transformers(
    teachers: dict[str, Teacher], originals: dict[str, nn.Module]
) -> None:
    layers = {layer.path: layer.depth for layer in teachers["resnet"].description.layers}
    assert layers.keys() == {
        path for path, part in originals["resnet"].named_modules() if type(part) is nn.BatchNorm2d
    }
    assert layers["resnet.embedder.embedder.normalization"] == 1
    assert layers["resnet.encoder.stages.2.layers.0.layer.1.normalization"] == 3


def test_batch_norm_sums_are_those_of_what_reaches_the_layer(
    teachers: dict[str, Teacher], originals: dict[str, nn.Module]
) -> None:
    teacher, embedder = teachers["resnet"], originals["resnet"].resnet.embedder.embedder  # type: ignore[union-attr]
    sums = teacher.forward(pictures(), wanted=Wanted(sums=True)).sums
    with torch.no_grad():
        value = embedder.convolution(teacher.preprocessing(pictures()))  # type: ignore[operator,union-attr]
    centred = value - embedder.normalization.running_mean[:, None, None]  # type: ignore[union-attr,index]
    assert sums is not None
    assert torch.allclose(sums.first[:4], centred.sum([0, 2, 3]), rtol=1e-4)
    assert torch.allclose(sums.second[:4], centred.square().sum([0, 2, 3]), rtol=1e-4)
    assert sums.count.min() > 0


def test_a_network_without_batch_norm_has_no_sums(teachers: dict[str, Teacher]) -> None:
    teacher = teachers["convnext"]
    sums = teacher.forward(pictures(), wanted=Wanted(sums=True)).sums
    assert teacher.description.layers == ()
    assert sums is not None and len(sums.count) == len(sums.first) == len(sums.second) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_what_the_last_layer_eats(teachers: dict[str, Teacher], kind: str) -> None:
    assert teachers[kind].description.embedding == 8


@pytest.mark.parametrize("kind", KINDS)
def test_modules_and_tensors_have_the_names_of_transformers(
    saved: dict[str, Path], originals: dict[str, nn.Module], kind: str
) -> None:
    network = build(completed(saved[kind]), "teachers.0")
    assert [name for name, _ in network.named_modules()] == [
        name for name, _ in originals[kind].named_modules()
    ]
    assert network.state_dict().keys() == originals[kind].state_dict().keys()


def test_a_network_says_the_same_after_copying_and_pickling(saved: dict[str, Path]) -> None:
    network = build(completed(saved["resnet"]), "teachers.0").eval()
    images, said = pictures(), network(pictures())
    assert torch.equal(copy.deepcopy(network)(images), said)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images), said)


def test_building_uses_nobodys_random_numbers_and_says_nothing(
    saved: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    spec = completed(saved["resnet"])
    before = torch.random.get_rng_state()
    build(spec, "teachers.0")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_building_needs_no_file(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved["resnet"], tmp_path / "pets")
    spec = completed(folder)
    weights = read_weights(spec, "teachers.0")
    shutil.rmtree(folder)
    network = build(spec, "teachers.0")
    load_state(network, weights.state, "teachers.0")
    assert network.state_dict().keys() == weights.state.keys()


def test_half_precision_weights_are_computed_with_in_fp32(
    originals: dict[str, nn.Module], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["resnet"], tmp_path / "pets")
    copy.deepcopy(originals["resnet"]).half().save_pretrained(folder)  # type: ignore[operator]
    spec = completed(folder)
    network = build(spec, "teachers.0")
    load_state(network, read_weights(spec, "teachers.0").state, "teachers.0")
    assert {value.dtype for value in network.parameters()} == {torch.float32}


# what the files say


@pytest.mark.parametrize("kind", KINDS)
def test_labels_task_and_input_are_read_from_the_files(saved: dict[str, Path], kind: str) -> None:
    spec = completed(saved[kind])
    assert (spec.labels, spec.task) == (LABELS, "multi_label")
    assert spec.input.model_dump() == INPUT


def test_labels_are_in_the_order_of_their_ids(make_folder: MakeFolder) -> None:
    names = {str(index): f"label {index}" for index in range(12)}
    spec = completed(make_folder(id2label=dict(sorted(names.items()))))
    assert spec.labels == list(names.values())


def test_a_name_that_stands_twice_is_told_apart_by_its_id(make_folder: MakeFolder) -> None:
    """ImageNet has two kinds of crane."""
    names = {"0": "crane", "1": "heron", "2": "crane"}
    assert completed(make_folder(id2label=names)).labels == ["crane (0)", "heron", "crane (2)"]


def test_a_teacher_may_be_without_weights_on_purpose(make_folder: MakeFolder) -> None:
    assert completed(make_folder(), weights=None).weights is None


@pytest.mark.parametrize("problem", ["single_label_classification", None])
def test_a_teacher_is_single_label_unless_it_says_otherwise(
    make_folder: MakeFolder, problem: str | None
) -> None:
    assert completed(make_folder(problem_type=problem)).task == "single_label"


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"size": 48}, 48),
        ({"size": {"height": 48, "width": 48}}, 48),
        ({"size": {"shortest_edge": 48}}, 48),
        ({"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": 40}, 40),
        (
            {"size": 48, "do_center_crop": True, "crop_size": {"height": 40, "width": 40}},
            40,
        ),
        ({"size": 48, "do_center_crop": False, "crop_size": 40}, 48),
    ],
)
def test_size_is_that_of_what_reaches_the_network(
    make_folder: MakeFolder, changes: dict[str, Any], size: int
) -> None:
    assert completed(make_folder("preprocessor_config.json", **changes)).input.size == size


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, [0.0], [1.0]),
        ({"image_mean": 0.5, "image_std": 0.25}, [0.5], [0.25]),
        ({"image_std": [0.5] * 3, "include_top": True}, [0.5, 0.4, 0.3], [0.25] * 3),
        ({"rescale_factor": 0.00392156862745098}, INPUT["mean"], INPUT["std"]),
    ],
)
def test_mean_and_std_are_for_images_from_0_to_1(
    make_folder: MakeFolder, changes: dict[str, Any], mean: list[float], std: list[float]
) -> None:
    spec = completed(make_folder("preprocessor_config.json", **changes))
    assert (spec.input.mean, spec.input.std) == (mean, std)


def test_channels_are_those_of_the_network(make_folder: MakeFolder) -> None:
    make_folder("preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    assert completed(make_folder(num_channels=1)).input.channels == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("labels", ["a", "b", "c"]), ("task", "single_label"), ("weights", "/elsewhere.safetensors")],
)
def test_what_the_user_writes_wins(saved: dict[str, Path], key: str, value: Any) -> None:
    assert getattr(completed(saved["resnet"], **{key: value}), key) == value


def test_what_the_user_writes_of_the_input_wins_and_the_rest_is_read(
    saved: dict[str, Path],
) -> None:
    spec = completed(saved["resnet"], input={"size": 64, "std": [0.5]})
    assert spec.input.model_dump() == INPUT | {"size": 64, "std": [0.5]}


def test_without_a_preprocessor_the_user_may_say_it_all(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "preprocessor_config.json").unlink()
    assert completed(folder, input=INPUT).input.model_dump() == INPUT


def test_files_that_the_user_makes_needless_need_not_be_there(make_folder: MakeFolder) -> None:
    folder = make_folder(id2label=None, num_labels=3)
    (folder / "model.safetensors").unlink()
    assert completed(folder, labels=LABELS, weights="/w.pt").labels == LABELS


def test_relative_folders_start_at_the_configuration(saved: dict[str, Path]) -> None:
    spec = configured(saved["resnet"].parent, "hf:./resnet")
    assert spec.source == f"hf:{saved['resnet']}"
    assert spec.weights == str(saved["resnet"] / "model.safetensors")


def test_the_whole_configuration_runs_again_from_anywhere_without_the_model_folder(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["resnet"], tmp_path / "pets")
    completed(folder)
    config = load(tmp_path / "run.yaml", complete=complete)
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "resolved.yaml"
    again.write_text(dump(config))
    assert load(again, complete=complete) == config


def test_the_jobs_complete_their_configurations(saved: dict[str, Path], tmp_path: Path) -> None:
    spec = configured(tmp_path, f"hf:{saved['resnet']}")
    arguments = commandline.parser("").parse_args(["--config", str(tmp_path / "run.yaml")])
    assert commandline.configuration(arguments).teachers == [spec]


def test_other_teachers_are_left_alone() -> None:
    trees: list[Any] = [
        {},
        {"teachers": None},
        {"teachers": [5, {}, {"source": "builtin:convnet"}, {"source": 5}]},
        {"teachers": [{"source": "hf:nowhere", "arguments": 5}]},
    ]
    assert [complete(tree, Path()) for tree in trees] == trees


# weights


def test_shards_are_merged_and_all_hashed(
    originals: dict[str, nn.Module], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["resnet"], tmp_path / "pets")
    (folder / "model.safetensors").unlink()
    originals["resnet"].save_pretrained(folder, max_shard_size="4KB")  # type: ignore[operator]
    spec = completed(folder)
    weights = read_weights(spec, "teachers.0")
    shards = sorted(folder.glob("model-*.safetensors"))
    files = [folder / "model.safetensors.index.json", *shards]
    assert len(shards) > 1
    assert weights.sha256 == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    assert_equal(weights.state, load_file(saved["resnet"] / "model.safetensors"))


def test_older_files_of_torch_are_read(saved: dict[str, Path], make_folder: MakeFolder) -> None:
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_equal(read_weights(completed(folder), "teachers.0").state, state)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.pt"}}']
)
def test_an_index_that_lists_no_files_is_refused(make_folder: MakeFolder, index: str) -> None:
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"^teachers\.0\.weights: .* lists no files of weights"):
        read_weights(completed(folder), "teachers.0")


def test_a_shard_that_is_missing_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"weights: .*model-00001-of-00002.safetensors does not"):
        read_weights(completed(folder), "teachers.0")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_refused(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(InputError, match=r"^teachers\.0\.weights: .* is truncated or no"):
        read_weights(completed(folder), "teachers.0")


def test_weights_of_another_architecture_are_refused(saved: dict[str, Path]) -> None:
    spec = completed(saved["resnet"], weights=str(saved["convnext"] / "model.safetensors"))
    with pytest.raises(InputError, match=r"^teachers\.0\.weights: do not belong"):
        loaded(spec)


def test_a_folder_without_weights_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert (error.key, error.what) == ("teachers.0.weights", f"{folder} holds none")
    assert "model.safetensors" in error.remedy


# what is refused


@pytest.mark.parametrize("source", ["hf:./none", "hf:../none", "hf:/none/at/all", "hf:a/b/c"])
def test_a_folder_that_is_missing_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match=r"^teachers\.0\.source: /.* does not exist"):
        configured(tmp_path, source)


def test_a_file_in_place_of_the_folder_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match=r"^teachers\.0\.source: .* is no folder"):
        configured(make_folder(), "hf:config.json")


def test_a_folder_without_a_config_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    with pytest.raises(InputError, match=r"^teachers\.0\.source: .*config\.json does not exist"):
        configured(folder.parent, f"hf:{folder.parent}")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
@pytest.mark.parametrize(
    ("file", "key"), [("config.json", "source"), ("preprocessor_config.json", "input")]
)
def test_a_broken_file_is_refused(
    make_folder: MakeFolder, file: str, key: str, content: bytes
) -> None:
    folder = make_folder()
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"^teachers\.0\.{key}: .*{file} (cannot be read|holds)"):
        configured(folder.parent, "hf:pets")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "bert", "architectures": None}, "type 'bert' is no image classifier"),
        ({"model_type": None, "architectures": None}, "type 'None' is no image classifier"),
        ({"model_type": "timm_wrapper"}, "type 'timm_wrapper' is no image classifier"),
        ({"architectures": ["ResNetBackbone"]}, "a ResNetBackbone is no image classifier"),
        ({"auto_map": {"AutoModel": "own.Net"}}, "code of its own"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantized"),
    ],
)
def test_what_is_no_plain_image_classifier_is_refused(
    make_folder: MakeFolder, changes: dict[str, Any], what: str
) -> None:
    error = refused(make_folder(**changes))
    assert error.key == "teachers.0.source"
    assert what in error.what


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"id2label": None}, "config.json has no id2label"),
        ({"num_labels": 4}, "3 names in id2label for num_labels 4"),
        ({"id2label": {"0": "a", "2": "b"}}, "2 names in id2label"),
        ({"id2label": {"a": "b"}}, "1 names in id2label"),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(3)}}, "LABEL_0 to LABEL_2, as every"),
    ],
)
def test_labels_that_are_not_all_there_are_refused(
    make_folder: MakeFolder, changes: dict[str, Any], what: str
) -> None:
    error = refused(make_folder(**changes))
    assert error.key == "teachers.0.labels"
    assert what in error.what


def test_a_regression_is_refused(make_folder: MakeFolder) -> None:
    error = refused(make_folder(problem_type="regression"))
    assert (error.key, error.what) == ("teachers.0.task", "is 'regression' in config.json")


def test_without_a_preprocessor_the_input_must_be_given(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "preprocessor_config.json").unlink()
    error = refused(folder)
    assert error.key == "teachers.0.input"
    assert error.remedy == "channels, size, mean and std"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("input.size", {"size": None}),
        ("input.size", {"size": {"height": 32, "width": 48}}),
        ("input.size", {"size": {"longest_edge": 32}}),
        ("input.mean", {"image_mean": None}),
        ("input.std", {"image_std": ["a"]}),
        ("input", {"do_rescale": False}),
        ("input", {"rescale_factor": 1 / 127.5}),
        ("input", {"do_flip_channel_order": True}),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(
    make_folder: MakeFolder, key: str, changes: dict[str, Any]
) -> None:
    assert refused(make_folder("preprocessor_config.json", **changes)).key == f"teachers.0.{key}"


def test_a_preprocessor_that_cannot_be_followed_may_be_replaced(make_folder: MakeFolder) -> None:
    folder = make_folder("preprocessor_config.json", do_rescale=False)
    said = {"mean": [0.5], "std": [0.5]}
    assert completed(folder, input=said).input.mean == [0.5]


def test_blocks_that_do_not_exist_are_refused_by_those_a_user_may_have_meant(
    saved: dict[str, Path],
) -> None:
    with pytest.raises(InputError, match=r"^teachers\.0\.blocks: no block is called 'layer1'") as e:
        loaded(completed(saved["convnext"], blocks=["layer1"]))
    assert all(name in e.value.remedy for name in blocks("convnext"))


def test_labels_for_which_there_are_no_logits_are_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"^teachers\.0\.labels: 2 names for 3 logits"):
        loaded(completed(saved["resnet"], labels=["a", "b"]))


def test_other_channels_than_the_networks_are_refused(saved: dict[str, Path]) -> None:
    said = {"channels": 1, "mean": [0.5], "std": [0.5]}
    with pytest.raises(InputError, match=r"^teachers\.0\.input\.channels: is 1 for a network of 3"):
        loaded(completed(saved["resnet"], input=said))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({}, "hold nothing"),
        ({"config": {"model_type": "resnet"}, "width": 3}, "hold config, width"),
        ({"config": {"model_type": "bert"}}, "is no image classifier"),
        ({"config": {"model_type": "resnet", "auto_map": {}}}, "code of its own"),
        ({"config": {"model_type": "resnet", "hidden_sizes": "wide"}}, "describes no network"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(
    saved: dict[str, Path], arguments: dict[str, Any], what: str
) -> None:
    spec = completed(saved["resnet"]).model_copy(update={"arguments": arguments})
    with pytest.raises(InputError) as caught:
        build(spec, "teachers.0")
    assert caught.value.key == "teachers.0.arguments"
    assert what in caught.value.what


def test_without_transformers_it_says_how_to_install_it(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    error = refused(saved["resnet"])
    assert (error.key, error.remedy) == ("teachers.0.source", "pip install 'dfka_dist[hf]'")


# the hub

HUB = """
import sys
from dfka_dist.errors import InputError
from dfka_dist.loading import load
from dfka_dist.models.completion import complete
from dfka_dist.models.sources import read_weights

for name in ("new", "old", "missing"):
    try:
        [spec] = load(sys.argv[1], [f"teachers.0.source=hf:someone/{name}"], complete).teachers
        print(spec.source, spec.weights, len(read_weights(spec, "teachers.0").state))
    except InputError as error:
        print(error)
"""


def cached(hub: Path, name: str, files: dict[str, Path]) -> Path:
    """Put files where huggingface_hub keeps what it fetched: links to blobs without suffixes."""
    model = hub / f"models--someone--{name}"
    snapshot = model / "snapshots" / ("0" * 40)
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    for number, (file, original) in enumerate(files.items()):
        shutil.copy(original, model / "blobs" / f"{number}")
        (snapshot / file).symlink_to(model / "blobs" / f"{number}")
    return snapshot


def test_a_hub_id_is_found_in_the_cache_of_the_hub(saved: dict[str, Path], tmp_path: Path) -> None:
    files = {path.name: path for path in saved["resnet"].iterdir()}
    new = cached(tmp_path / "hub", "new", files)
    state = load_file(files.pop("model.safetensors"))
    torch.save(state, tmp_path / "state")
    old = cached(tmp_path / "hub", "old", files | {"pytorch_model.bin": tmp_path / "state"})
    configured(tmp_path, f"hf:{saved['resnet']}")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HUB, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    *found, missing = done.stdout.splitlines()
    assert found == [
        f"hf:someone/new {new / 'model.safetensors'} {len(state)}",
        f"hf:someone/old {old / 'pytorch_model.bin'} {len(state)}",
    ]
    assert missing.startswith("teachers.0.source: someone/missing is no folder here and cannot be")
    assert done.stderr == ""


class Hub(BaseHTTPRequestHandler):
    """A hub whose models all have the same files, as far as these are listed and fetched."""

    files: Mapping[str, bytes]
    fetched: set[str]

    def do_HEAD(self) -> None:
        file = self.path.rpartition("/")[2]
        about = {"ETag": hashlib.sha1(file.encode()).hexdigest(), "X-Repo-Commit": "0" * 40}
        self._say(self.files[file], about)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            model, file = self.path.split("/")[2], self.path.rpartition("/")[2]
            self.fetched.add(f"{model}/{file}")
            self.do_HEAD()
            self.wfile.write(self.files[file])
            return
        files = [
            {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": name}
            for name, content in self.files.items()
        ]
        model = {"id": "someone/any", "sha": "0" * 40, "siblings": files}
        told = json.dumps(files if "/tree/" in self.path else model).encode()
        self._say(told, {"Content-Type": "application/json"})
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _say(self, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def hub(saved: dict[str, Path]) -> Iterator[tuple[str, set[str]]]:
    """The address of a hub where every model is the ResNet, and what was fetched there."""
    files = {path.name: path.read_bytes() for path in saved["resnet"].iterdir()}
    own = type("Own", (Hub,), {"files": files, "fetched": set()})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", own.fetched  # type: ignore[attr-defined]
        server.shutdown()


FETCH = """
import sys
from dfka_dist.loading import load
from dfka_dist.models.completion import complete

for name, more in (("all", []), ("none", ["weights=null"]), ("mine", ["weights=/w.safetensors"])):
    own = [f"teachers.0.{each}" for each in (f"source=hf:someone/{name}", *more)]
    print(load(sys.argv[1], own, complete).teachers[0].labels)
"""


def test_weights_are_fetched_from_the_hub_only_if_the_configuration_says_nothing_of_them(
    saved: dict[str, Path], hub: tuple[str, set[str]], tmp_path: Path
) -> None:
    address, fetched = hub
    configured(tmp_path, f"hf:{saved['resnet']}")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{LABELS}\n" * 3, done.stderr
    models, files = ("all", "none", "mine"), ("config.json", "preprocessor_config.json")
    described = {f"{model}/{file}" for model in models for file in files}
    assert fetched == {*described, "all/model.safetensors"}


# the target


def test_a_saved_target_needs_no_file_of_its_hugging_face_teacher(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["resnet"], tmp_path / "pets")
    teacher = loaded(completed(folder))
    target = target_of(teacher)
    target.save_pretrained(tmp_path / "target")
    shutil.rmtree(folder)
    again = TargetNet.from_pretrained(tmp_path / "target")
    assert torch.equal(again.predict(pictures()), target.predict(pictures()))


def test_a_target_says_of_a_folder_its_name_and_not_where_it_lies(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    one, two = (shutil.copytree(saved["resnet"], tmp_path / f / "pets") for f in ("one", "two"))
    target = target_of(loaded(completed(one)))
    target.save_pretrained(tmp_path / "target")
    written = (tmp_path / "target" / "config.json").read_text()
    assert '"source": "hf:pets"' in written and str(tmp_path) not in written
    assert target_of(loaded(completed(two))).design == target.design


def test_a_target_that_was_saved_with_the_place_of_a_folder_is_the_same(
    teachers: dict[str, Teacher], tmp_path: Path
) -> None:
    target = target_of(teachers["resnet"])
    target.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"hf:resnet"', '"hf:/home/somebody/resnet"'))
    again = TargetNet.from_pretrained(tmp_path)
    assert "somebody" in path.read_text() and again.design == target.design
    assert torch.equal(again.predict(pictures()), target.predict(pictures()))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("hf:/a/b c/pets", "hf:pets"),
        ("hf:../pets", "hf:pets"),
        ("hf:~/pets", "hf:pets"),
        ("hf:pets", "hf:pets"),
        ("hf:someone/pets", "hf:someone/pets"),
        ("own.pets:network", "own.pets:network"),
    ],
)
def test_a_target_knows_a_teacher_by_what_is_the_same_on_every_machine(
    teachers: dict[str, Teacher], source: str, kept: str
) -> None:
    spec = teachers["resnet"].description.spec.model_copy(update={"source": source})
    once = remembered(spec)
    assert (once.source, once.weights) == (kept, None)
    assert remembered(once) == once


def test_a_saved_target_that_needs_code_of_its_own_is_refused(
    teachers: dict[str, Teacher], tmp_path: Path
) -> None:
    target_of(teachers["resnet"]).save_pretrained(tmp_path)
    design = json.loads((tmp_path / "config.json").read_text())
    design["branches"][0]["teacher"]["arguments"]["config"]["auto_map"] = {"AutoModel": "own.Net"}
    (tmp_path / "config.json").write_text(json.dumps(design))
    with pytest.raises(InputError, match=r"code of its own \(auto_map\)"):
        TargetNet.from_pretrained(tmp_path)


def target_of(teacher: Teacher) -> TargetNet:
    """A trunk of its own, with the tail of a teacher at depth 2."""
    description = teacher.description
    spec = description.spec
    branch = BranchPoint(
        teacher=spec,
        depth=2,
        entry=2,
        shape=description.shapes[2],
        labels=spec.labels,
    )
    design = Architecture(
        dfka_dist=version(),
        labels=spec.labels,
        input=spec.input,
        backbone="convnet",
        arguments={"widths": [4, 6]},
        branches=[branch],
    )
    return build_target(design, LocalTeachers({spec.name: teacher})).eval()
