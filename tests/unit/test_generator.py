"""The group-stack generator: noise to features at every depth, and to images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfka_dist.models.filters import Shape
from dfka_dist.models.generator import GroupStackGenerator, Stack

SHAPES: list[Shape] = [(1, 16, 16), (4, 8, 8), (6, 4, 4)]  # teacher depths 0, 1, 2
OTHER: list[Shape] = [(1, 16, 16), (4, 8, 8), (5, 3, 3)]  # differs at depth 2


def generator(
    shapes: list[Shape] = SHAPES, teachers: dict[str, list[Shape]] | None = None, seed: int = 0
) -> GroupStackGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = {"same": SHAPES, "other": OTHER} if teachers is None else teachers
        return GroupStackGenerator(latent=7, shapes=shapes, teachers=dict(own), labels=3)


def noise(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))


def asked(count: int = 4) -> Tensor:
    return torch.eye(3)[torch.arange(count) % 3]


def made(network: GroupStackGenerator) -> Stack:
    stack: Stack = network(noise(), asked())
    return stack


def values(stack: Stack) -> list[Tensor]:
    """Outputs of group 1 to group B."""
    return [*(each.feature for each in stack.features), stack.images]


def test_images_have_the_shape_of_depth_zero() -> None:
    assert made(generator()).images.shape == (4, 1, 16, 16)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_images_lie_between_zero_and_one(factor: float) -> None:
    images = generator()(factor * noise(), asked()).images
    assert 0 <= images.min() < images.max() <= 1


def test_group_j_gives_a_feature_of_depth_b_minus_j() -> None:
    shapes = [tuple(each.feature.shape[1:]) for each in made(generator()).features]
    assert shapes == [SHAPES[2], SHAPES[1]]


@pytest.mark.parametrize(
    "shapes",
    [
        [(3, 32, 32), (8, 16, 16), (8, 8, 8), (12, 4, 4), (16, 2, 2)],
        [(1, 28, 28), (4, 14, 14), (6, 7, 7)],
        [(3, 30, 30), (5, 13, 13)],
        [(1, 9, 9)],
        [(1, 16, 16), (4, 16, 16), (4, 1, 1)],
    ],
)
def test_groups_reach_any_shapes(shapes: list[Shape]) -> None:
    stack = made(generator(shapes, {}))
    found = [tuple(value.shape[1:]) for value in reversed(values(stack))]
    assert found == shapes


def test_all_gates_are_one_at_the_start() -> None:
    gates = [gate for each in made(generator()).features for gate in each.gates.values()]
    assert all(torch.equal(gate, torch.ones_like(gate)) for gate in gates)


def test_every_group_but_the_last_has_a_gate_for_every_teacher() -> None:
    features = made(generator()).features
    shapes = [{n: tuple(gate.shape) for n, gate in each.gates.items()} for each in features]
    assert shapes == [{"same": (4, 6), "other": (4, 5)}, {"same": (4, 4), "other": (4, 4)}]


def test_only_teachers_of_another_shape_get_a_form_of_their_own() -> None:
    features = made(generator()).features
    shapes = [{n: tuple(form.shape) for n, form in each.adapted.items()} for each in features]
    assert shapes == [{"other": (4, 5, 3, 3)}, {}]


def test_without_teachers_there_are_no_gates() -> None:
    assert [each.gates for each in made(generator(teachers={})).features] == [{}, {}]


def test_the_same_noise_and_labels_make_the_same_images() -> None:
    network = generator().eval()
    assert torch.equal(made(network).images, made(network).images)


def test_other_noise_makes_other_images() -> None:
    network = generator()
    assert not torch.equal(network(noise(seed=1), asked()).images, made(network).images)


def test_other_labels_make_other_images() -> None:
    network = generator()
    assert not torch.equal(network(noise(), 1 - asked()).images, made(network).images)


def test_label_vectors_are_fixed() -> None:
    names = [name for name, _ in generator().named_parameters()]
    assert "label_vectors" not in names


def test_label_vectors_are_saved() -> None:
    first, second = generator(seed=0), generator(seed=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(noise(), asked()).images, made(first.eval()).images)


def test_every_parameter_of_the_groups_learns_from_images_and_features() -> None:
    network = generator(teachers={})
    stack = made(network)
    torch.stack([value.square().mean() for value in values(stack)]).sum().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert idle == []


def test_filters_of_the_images_own_group_do_not_exist() -> None:
    assert len(generator().filters) == len(SHAPES) - 1


def test_under_autocast_everything_still_comes_out_in_thirty_two_bits() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        stack = made(generator(teachers={}))
    assert {value.dtype for value in values(stack)} == {torch.float32}


def test_what_is_enlarged_begins_without_a_checkerboard() -> None:
    """All pixels that come of one place are alike."""
    for group in generator().groups:
        narrow, factor = group.narrow, group.factor
        made = narrow(torch.randn(2, narrow.in_channels, 4, 4))
        enlarged = functional.pixel_shuffle(made, factor)
        places = functional.interpolate(enlarged[:, :, ::factor, ::factor], scale_factor=factor)
        torch.testing.assert_close(enlarged, places)
