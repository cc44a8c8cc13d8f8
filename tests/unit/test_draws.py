"""The sheet of samples: what is on it, and how many images are made at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.generator import GroupStackGenerator, Stack
from dfka_dist.training.draws import Draws
from dfka_dist.training.turns import only_synthesizing

LABELS = [f"class {n}" for n in range(30)]
BATCH = 16

MakeDraws = Callable[..., Draws]


class Seen:
    """What a generator was asked for and made, call by call."""

    def __init__(self, generator: GroupStackGenerator) -> None:
        self.asked_for: list[Tensor] = []
        self.images: list[Tensor] = []
        generator.register_forward_hook(self._note)

    def _note(self, _: object, inputs: tuple[Tensor, Tensor], made: Stack) -> None:
        self.asked_for.append(inputs[1])
        self.images.append(made.images)

    def sizes(self) -> list[int]:
        return [len(images) for images in self.images]


@pytest.fixture(scope="module")
def make_draws(
    make_config: Callable[..., RunConfig], make_teacher: Callable[..., TeacherSpec]
) -> MakeDraws:
    """A factory of draws of `make_draws(labels, pools)`, in batches of 16."""

    def make(labels: int, *pools: range) -> Draws:
        config = make_config(
            [make_teacher("one", LABELS[:labels])],
            generator={"latent": 7},
            training={"batch_size": BATCH},
        )
        return Draws(config, pools or [range(labels)], torch.device("cpu"))

    return make


def generator(labels: int) -> GroupStackGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shapes = [(1, 16, 16), (4, 8, 8), (6, 4, 4)]
        return GroupStackGenerator(latent=7, shapes=shapes, teachers={}, labels=labels)


def test_a_sheet_of_many_labels_is_never_made_in_more_than_a_batch(make_draws: MakeDraws) -> None:
    network = generator(len(LABELS))
    seen = Seen(network)
    make_draws(len(LABELS)).sheet(network, each=4, most=100)
    assert sum(seen.sizes()) == 4 * len(LABELS)
    assert max(seen.sizes()) <= BATCH


def test_no_slice_of_a_sheet_is_a_small_rest(make_draws: MakeDraws) -> None:
    network = generator(9)
    seen = Seen(network)
    make_draws(9).sheet(network, each=2, most=100)
    assert seen.sizes() == [9, 9]  # not 16 and 2


def test_only_labels_that_are_shown_are_made(make_draws: MakeDraws) -> None:
    network = generator(len(LABELS))
    seen = Seen(network)
    assert len(make_draws(len(LABELS)).sheet(network, each=2, most=5)) == 2 * 5
    assert torch.cat(seen.asked_for).sum(dim=0).tolist() == [2] * 5 + [0] * (len(LABELS) - 5)


def test_a_sheet_that_a_batch_can_hold_is_made_at_once(make_draws: MakeDraws) -> None:
    draws, network, labels = make_draws(8), generator(8), [range(8)]
    with only_synthesizing(network):
        stack: Stack = network(*draws.latents("samples", 0, range(16), labels))
    assert torch.equal(draws.sheet(network, each=2, most=100), stack.images)


@pytest.mark.parametrize(
    "pools",
    [
        [range(10)],
        [range(0, 7), range(7, 10)],
        [range(0, 8), range(4, 10)],
        [range(9), range(9, 12)],
    ],
    ids=["one", "two", "two that share labels", "one of which little is shown"],
)
def test_every_row_of_a_cut_sheet_is_a_labels_own(
    pools: list[range], make_draws: MakeDraws
) -> None:
    shown = [label for label in range(10) if any(label in pool for pool in pools)]
    network = generator(12)
    seen = Seen(network)
    sheet = make_draws(12, *pools).sheet(network, each=4, most=10)
    made, asked_for = torch.cat(seen.images), torch.cat(seen.asked_for)
    assert len(seen.sizes()) > 1
    for row, image in enumerate(sheet):
        (place,) = (made == image).flatten(1).all(dim=1).nonzero().flatten()
        assert asked_for[place].nonzero().item() == shown[row // 4]


def test_a_pool_of_which_no_label_is_shown_makes_no_images(make_draws: MakeDraws) -> None:
    network = generator(12)
    seen = Seen(network)
    make_draws(12, range(4), range(4, 12)).sheet(network, each=2, most=4)
    assert sum(seen.sizes()) == 2 * 4
