"""What every network does to pictures before it looks at them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfka_dist.config import InputSpec
from dfka_dist.models.preprocessing import Preprocessing, common_input


def spec(channels: int = 1, size: int = 8, **more: list[float]) -> InputSpec:
    return InputSpec.model_validate({"channels": channels, "size": size, **more})


def pictures(channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_pixels_are_normalised() -> None:
    # (0.5 - 0.4) / 0.2 and (1 - 0.4) / 0.2
    images = torch.tensor([0.5, 1.0])[:, None, None, None].expand(-1, 1, 8, 8)
    seen = Preprocessing(spec(mean=[0.4], std=[0.2]))(images)
    assert torch.allclose(seen[:, 0, 0, 0], torch.tensor([0.5, 3.0]))


def test_every_channel_has_its_own_mean_and_deviation() -> None:
    made = Preprocessing(spec(3, mean=[0.0, 0.5, 1.0], std=[1.0, 0.5, 0.25]))
    seen = made(torch.full((1, 3, 8, 8), 0.5))
    assert torch.equal(seen[0, :, 0, 0], torch.tensor([0.5, 0.0, -2.0]))


def test_one_mean_serves_three_channels() -> None:
    seen = Preprocessing(spec(3, mean=[0.5], std=[0.5]))(torch.ones(1, 3, 8, 8))
    assert torch.equal(seen, torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize(("channels", "given"), [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_never_handed_on_as_they_are(
    channels: int, given: int, size: int, dtype: torch.dtype
) -> None:
    """A network may write into what it is given, and images may be memory that others read."""
    images = pictures(given).to(dtype)
    seen = Preprocessing(spec(channels, size, mean=[0.0], std=[1.0]))(images)
    assert seen.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", [4, 7, 8, 16, 33])
def test_pictures_of_any_size_get_the_networks_own(size: int) -> None:
    assert Preprocessing(spec())(pictures(size=size)).shape == (2, 1, 8, 8)


def test_pictures_of_the_right_size_are_not_touched() -> None:
    plain = Preprocessing(spec(mean=[0.0], std=[1.0]))
    assert torch.equal(plain(pictures()), pictures())


def test_a_plain_picture_stays_plain_when_it_is_resized() -> None:
    plain = Preprocessing(spec(mean=[0.0], std=[1.0]))
    assert torch.allclose(plain(torch.full((1, 1, 21, 21), 0.3)), torch.tensor(0.3))


def test_one_channel_becomes_three_by_repetition() -> None:
    plain = Preprocessing(spec(3, mean=[0.0], std=[1.0]))
    assert torch.equal(plain(pictures()), pictures().repeat(1, 3, 1, 1))


def test_three_channels_become_one_by_their_mean() -> None:
    plain = Preprocessing(spec(1, mean=[0.0], std=[1.0]))
    assert torch.allclose(plain(pictures(3)), pictures(3).mean(1, keepdim=True))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 13), (3, 5)])
def test_gradients_reach_every_pixel(channels: int, size: int) -> None:
    images = pictures(channels, size).requires_grad_()
    Preprocessing(spec())(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_precision_of_the_pictures_is_kept(kind: torch.dtype) -> None:
    assert Preprocessing(spec())(pictures().to(kind)).dtype == kind


def test_constants_are_no_weights() -> None:
    assert Preprocessing(spec()).state_dict() == {}


def test_teachers_of_one_input_share_it() -> None:
    own = spec(3, 12, mean=[0.1, 0.2, 0.3])
    assert common_input([own, own]) == own


def test_teachers_of_different_inputs_share_the_largest() -> None:
    common = common_input([spec(1, 16, mean=[0.1]), spec(3, 8)])
    assert (common.channels, common.size) == (3, 16)


def test_teachers_of_one_size_and_different_statistics_share_neutral_ones() -> None:
    common = common_input([spec(mean=[0.1]), spec(mean=[0.9])])
    assert (common.mean, common.std) == ([0.5], [0.5])
