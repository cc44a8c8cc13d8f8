"""Images are moved and mixed as the random numbers say that are given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfka_dist.training.altering import MIXES, MOVES, mixed, moved

# mixing

DARK, BRIGHT = torch.zeros(400, 1, 32, 32), torch.ones(400, 1, 32, 32)


def chances(seed: int = 0) -> Tensor:
    return torch.rand(400, MIXES, generator=torch.Generator().manual_seed(seed))


def test_a_mixed_image_lies_between_the_two() -> None:
    images = mixed(DARK, BRIGHT, chances(), 1.0)
    assert 0 <= images.min() < 0.05 < 0.95 < images.max() <= 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_so_many_images_are_mixed_as_was_asked(share: float) -> None:
    images = mixed(DARK, BRIGHT, chances(), share).flatten(1)
    assert (images.amax(1) > 0).float().mean().item() == pytest.approx(share, abs=0.07)


def test_half_of_the_mixed_images_are_mixed_alike_everywhere() -> None:
    images = mixed(DARK, BRIGHT, chances(), 1.0).flatten(1)
    even = images.amax(1) - images.amin(1) < 1e-6
    assert even.float().mean().item() == pytest.approx(0.5, abs=0.07)


def test_the_others_are_mixed_by_a_map_that_is_smooth() -> None:
    images = mixed(DARK, BRIGHT, chances(), 1.0)
    steps = images.diff(dim=2).abs().amax((1, 2, 3))
    whole = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    assert whole.max() > 0.8
    assert steps.max() < whole.max() / 2


# moving


def spot(row: int, column: int) -> Tensor:
    """A bright square of two by two in a dark picture of sixteen by sixteen."""
    image = torch.zeros(1, 1, 16, 16)
    image[..., row : row + 2, column : column + 2] = 1.0
    return image


def test_an_image_that_is_not_moved_stays_what_it_is() -> None:
    image = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved(image, torch.rand(3, MOVES), 0.0), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("chance", "row", "column"), [((1.0, 0.5), 7, 5), ((0.0, 0.5), 7, 9), ((0.5, 1.0), 5, 7)]
)
def test_an_image_is_shifted_by_halves_of_the_picture(
    chance: tuple[float, float], row: int, column: int
) -> None:
    """A quarter of eight pixels are two; what turns and scales stays in the middle."""
    there = moved(spot(7, 7), torch.tensor([[*chance, 0.5, 0.5]]), 0.25)
    torch.testing.assert_close(there, spot(row, column), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("chance", "row", "column"),
    [
        ((0.5, 0.5, 1.0, 0.5), 7, 3),  # a quarter of a turn carries what is above to the left
        ((0.5, 0.5, 0.0, 0.5), 7, 11),
    ],
)
def test_an_image_is_turned_round_its_middle_by_radians(
    chance: tuple[float, ...], row: int, column: int
) -> None:
    turned = moved(spot(3, 7), torch.tensor([chance]), math.pi / 2)
    brightest = turned.flatten().argmax().item()
    assert divmod(brightest, 16)[0] in (row, row + 1)
    assert divmod(brightest, 16)[1] in (column, column + 1)


@pytest.mark.parametrize(("chance", "row"), [(1.0, 5), (0.0, 0)])
def test_an_image_is_scaled_from_its_middle(chance: float, row: int) -> None:
    """What lies twice as far out in the picture that is asked comes nearer by a half of it."""
    scaled = moved(spot(3, 7), torch.tensor([[0.5, 0.5, 0.5, chance]]), 0.5)
    rows = scaled.sum((0, 1, 3))
    assert abs((rows * torch.arange(16)).sum() / rows.sum() - row) < 1.5


def test_edges_are_drawn_out() -> None:
    """A bright picture stays bright: no black comes in from outside."""
    bright = moved(BRIGHT, torch.rand(400, MOVES, generator=torch.Generator().manual_seed(0)), 0.3)
    torch.testing.assert_close(bright, BRIGHT)
