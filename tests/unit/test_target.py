"""The dual generator, the target that it becomes, and the target on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfka_dist.config import PRESETS, InputSpec, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.loading import load
from dfka_dist.models.sources import build, read_all_weights
from dfka_dist.models.target import (
    Architecture,
    BranchPoint,
    DualGenerator,
    TargetNet,
    trunk_shapes,
    version,
)
from dfka_dist.teachers.teacher import Teacher, load_teachers
from dfka_dist.training.branching import Branching

MakeTeacher = Callable[..., TeacherSpec]
SHAPES = [(1, 16, 16), (4, 8, 8), (6, 4, 4), (8, 2, 2)]

OWN_NETWORK = """
from dfka_dist.models.backbones import ConvNet

def network(labels):
    return ConvNet(labels=labels, widths=[4, 6, 8])
"""


def branch(spec: TeacherSpec, labels: list[str], depth: int = 3) -> BranchPoint:
    own = spec.model_copy(update={"weights": None})
    return BranchPoint(teacher=own, depth=depth, entry=depth, shape=SHAPES[depth], labels=labels)


def design(branches: list[BranchPoint], labels: list[str], **more: Any) -> Architecture:
    return Architecture(
        dfka_dist=version(),
        labels=labels,
        input=InputSpec(channels=1, size=16),
        backbone=more.get("backbone", "convnet"),
        arguments=more.get("arguments", {"widths": [4, 6, 8]}),
        branches=branches,
    )


def randomised(network: TargetNet, seed: int = 0) -> TargetNet:
    """No parameter and no buffer as it was at the start."""
    generator = torch.Generator().manual_seed(seed)
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point():
            value.data.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return network.eval()


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def branches(make_teacher: MakeTeacher) -> list[BranchPoint]:
    """Two teachers that both know b; of the second only two labels are kept."""
    first = make_teacher("first", ["a", "b"])
    second = make_teacher("second", ["x", "c", "b"])
    return [branch(first, ["a", "b"]), branch(second, ["c", "b"])]


@pytest.fixture(scope="module")
def target(branches: list[BranchPoint]) -> TargetNet:
    return randomised(TargetNet(design(branches, ["b", "c", "a"])))


# forward and predict


def test_every_branch_says_something_of_its_own_kept_labels(target: TargetNet) -> None:
    shapes = {name: tuple(said.shape) for name, said in target(pictures()).items()}
    assert shapes == {"first": (3, 2), "second": (3, 2)}


def test_a_branch_keeps_the_columns_of_its_labels(target: TargetNet) -> None:
    said = target.tails["second"](target.trunk(pictures())["second"])
    assert torch.equal(target(pictures())["second"], said[:, [1, 2]])


def test_predictions_stand_in_the_order_of_the_labels(target: TargetNet) -> None:
    said = target(pictures())
    predicted = target.predict(pictures())
    assert torch.equal(predicted[:, target.labels.index("a")], said["first"][:, 0].sigmoid())
    assert torch.equal(predicted[:, target.labels.index("c")], said["second"][:, 0].sigmoid())


def test_a_label_that_two_teachers_know_is_averaged(target: TargetNet) -> None:
    said = target(pictures())
    mean = (said["first"][:, 1].sigmoid() + said["second"][:, 1].sigmoid()) / 2
    assert torch.allclose(target.predict(pictures())[:, target.labels.index("b")], mean)


def test_predictions_of_a_single_label_branch_are_a_softmax(make_teacher: MakeTeacher) -> None:
    spec = make_teacher("one", ["a", "b", "c"], task="single_label")
    net = randomised(TargetNet(design([branch(spec, ["a", "b", "c"])], ["c", "b", "a"])))
    predicted = net.predict(pictures())
    assert torch.allclose(predicted, net(pictures())["one"].softmax(1).flip(1))


def test_predictions_carry_no_graph(target: TargetNet) -> None:
    assert not target.predict(pictures()).requires_grad


@pytest.mark.parametrize("size", [8, 16, 40])
def test_images_of_any_size_are_welcome(target: TargetNet, size: int) -> None:
    assert target.predict(pictures(2, size)).shape == (2, 3)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_branch_may_leave_the_trunk_at_any_depth(make_teacher: MakeTeacher, depth: int) -> None:
    net = TargetNet(design([branch(make_teacher(), ["a", "b", "c"], depth)], ["a", "b", "c"]))
    assert net.eval().predict(pictures()).shape == (3, 3)


def test_branches_may_leave_the_trunk_at_different_depths(make_teacher: MakeTeacher) -> None:
    early = branch(make_teacher("early", ["a"]), ["a"], 1)
    late = branch(make_teacher("late", ["b"]), ["b"], 3)
    net = TargetNet(design([early, late], ["a", "b"])).eval()
    assert {name: tuple(f.shape) for name, f in net.trunk(pictures(1)).items()} == {
        "early": (1, 4, 8, 8),
        "late": (1, 8, 2, 2),
    }


def test_blocks_behind_the_last_branch_are_left_out(make_teacher: MakeTeacher) -> None:
    net = DualGenerator(design([branch(make_teacher(), ["a"], 2)], ["a"]))
    assert len(net.blocks) == 2


def test_a_trunk_of_other_widths_is_adapted_to_the_teachers(branches: list[BranchPoint]) -> None:
    net = TargetNet(design(branches, ["a", "b", "c"], arguments={"widths": [3, 5, 7]}))
    assert net.eval().predict(pictures()).shape == (3, 3)


def test_building_a_tail_leaves_everybodys_random_numbers_alone(
    branches: list[BranchPoint],
) -> None:
    drawn = []
    for build_it in (DualGenerator, TargetNet):
        torch.manual_seed(0)
        build_it(design(branches, ["a", "b", "c"]))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_measuring_shapes_leaves_the_trunk_in_training_and_its_buffers_alone(
    branches: list[BranchPoint],
) -> None:
    net = DualGenerator(design(branches, ["a", "b", "c"]))
    before = {name: value.clone() for name, value in net.named_buffers()}
    trunk_shapes(net.train().blocks, InputSpec(channels=1, size=16))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers())


def test_a_target_of_the_digits_is_at_most_a_tenth_larger_than_a_teacher() -> None:
    config = load(PRESETS / "digits.yaml")
    teachers = load_teachers(config.teachers, read_all_weights(config.teachers))
    descriptions = {name: teacher.description for name, teacher in teachers.items()}
    target = TargetNet(Branching(config, descriptions).design())
    largest = max(description.parameters for description in descriptions.values())
    assert target.parameter_count() <= 1.1 * largest


# designs that cannot be


def test_unknown_backbone_is_refused_by_those_that_exist(branches: list[BranchPoint]) -> None:
    with pytest.raises(InputError, match=r"^target\.backbone: no backbone 'densenet' \(one of con"):
        DualGenerator(design(branches, ["a", "b", "c"], backbone="densenet"))


@pytest.mark.parametrize("arguments", [{"width": [4]}, {"widths": 5}, {"channels": 3}])
def test_arguments_that_a_backbone_does_not_take_are_refused(
    branches: list[BranchPoint], arguments: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"^target\.arguments: "):
        DualGenerator(design(branches, ["a", "b", "c"], arguments=arguments))


def test_branch_deeper_than_the_trunk_is_refused(branches: list[BranchPoint]) -> None:
    with pytest.raises(InputError, match=r"^target\.branch: is 3 \(1 to 2"):
        DualGenerator(design(branches, ["a", "b", "c"], arguments={"widths": [4, 6]}))


# on disk


def test_a_saved_target_comes_back_bit_for_bit(target: TargetNet, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    again = TargetNet.from_pretrained(tmp_path)
    assert torch.equal(again.predict(pictures()), target.predict(pictures()))


def test_a_saved_target_comes_back_with_every_buffer(target: TargetNet, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    before, after = target.state_dict(), TargetNet.from_pretrained(tmp_path).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_target_comes_back_in_eval_mode(target: TargetNet, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    assert not any(part.training for part in TargetNet.from_pretrained(tmp_path).modules())


def test_saving_twice_gives_the_same_bytes(target: TargetNet, tmp_path: Path) -> None:
    for name in ("one", "two"):
        target.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_a_target_that_was_loaded_saves_the_same_bytes(target: TargetNet, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path / "one")
    TargetNet.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_no_teachers_file_is_named_on_disk(target: TargetNet, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [b["teacher"]["weights"] for b in saved["branches"]] == [None, None]


# on disk, and wrong


def loading_refused(folder: Path, **more: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        TargetNet.from_pretrained(folder, **more)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.fixture
def saved(target: TargetNet, tmp_path: Path) -> Path:
    target.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file_is_refused(saved: Path, file: str) -> None:
    (saved / file).unlink()
    assert file in loading_refused(saved).what


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in loading_refused(tmp_path / "none").what


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"labels": []}'])
def test_configuration_that_describes_no_target_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    assert "describes no target" in loading_refused(saved).what


def test_configuration_that_is_no_text_is_refused(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "describes no target" in loading_refused(saved).what


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["branches"], []),
        (["branches", 0, "depth"], 0),
        (["branches", 0, "depth"], 9),
        (["branches", 0, "depth"], -1),
        (["branches", 0, "labels"], ["q"]),
        (["branches", 0, "shape"], [4, 2, 2]),
        (["branches", 0, "shape"], [-4, 2, 2]),
        (["branches", 0, "teacher", "blocks"], ["block9"]),
        (["branches", 0, "teacher", "arguments", "widths"], [4, -1]),
        (["branches", 0, "teacher", "name"], "second"),
        (["arguments", "widths"], [4, -6, 8]),
        (["arguments", "widths"], []),
        (["backbone"], "densenet"),
        (["labels"], ["q"]),
        (["labels"], []),
    ],
)
def test_configuration_with_one_wrong_value_is_refused(
    saved: Path, path: list[str | int], value: object
) -> None:
    tree = json.loads((saved / "config.json").read_text())
    place = tree
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    (saved / "config.json").write_text(json.dumps(tree))
    assert isinstance(loading_refused(saved), InputError)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_weights_are_refused(saved: Path, share: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors cannot be read" in loading_refused(saved).what


def test_weights_of_another_target_are_refused(
    saved: Path, branches: list[BranchPoint], tmp_path: Path
) -> None:
    other = TargetNet(design(branches, ["a", "b", "c"], arguments={"widths": [5, 6, 8]}))
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    assert "does not fit" in loading_refused(saved).what


# on disk, with somebody's code


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_teacher: MakeTeacher) -> Path:
    """A saved target one of whose tails is made by a module of the user's."""
    (tmp_path / "own_tails.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    source = {"source": "own_tails:network", "arguments": {"labels": 3}}
    spec = make_teacher().model_copy(update=source)
    net = randomised(TargetNet(design([branch(spec, ["a", "b", "c"])], ["a", "b", "c"])))
    net.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_code_that_is_not_allowed_is_refused_by_its_module(own_code: Path) -> None:
    error = loading_refused(own_code)
    assert (error.key, error.remedy) == ("allow_code", 'allow_code=["own_tails"]')


def test_allowing_one_module_allows_no_other(own_code: Path) -> None:
    assert loading_refused(own_code, allow_code=["own"]).key == "allow_code"


def test_code_that_is_allowed_is_used(own_code: Path) -> None:
    net = TargetNet.from_pretrained(own_code, allow_code=["own_tails"])
    assert net.predict(pictures()).shape == (3, 3)


def test_weights_may_be_those_of_a_teachers_tail(make_teacher: MakeTeacher) -> None:
    """The head of the network that the source builds fits the tail behind the last block."""
    spec = make_teacher()
    net = TargetNet(design([branch(spec, ["a", "b", "c"])], ["a", "b", "c"]))
    whole = build(spec, "teachers.0")
    shapes = sorted(tuple(value.shape) for value in net.tails[spec.name].state_dict().values())
    assert isinstance(whole.classifier, nn.Linear)
    assert shapes == sorted(tuple(value.shape) for value in whole.classifier.state_dict().values())


@pytest.mark.parametrize("labels", [["b"], ["c", "a"]])
def test_a_label_of_a_softmax_teacher_is_as_likely_alone_as_among_all(
    make_teacher: Callable[..., TeacherSpec],
    load_teacher: Callable[[TeacherSpec], Teacher],
    make_copy: Callable[..., TargetNet],
    labels: list[str],
) -> None:
    teacher = load_teacher(make_teacher("one", "abc", task="single_label"))
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = make_copy(teacher).predict(images)
    few = make_copy(teacher, labels=labels)
    assert torch.equal(few.predict(images), whole[:, ["abc".index(label) for label in labels]])
    kept = [label for label in "abc" if label in labels]
    assert few.probabilities(images)["one"].shape == (4, len(kept))
