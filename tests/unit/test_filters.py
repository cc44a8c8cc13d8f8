"""Gates on shared features, and the adapters between networks of different shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfka_dist.models.filters import FilterBank, Shape, TeacherFilter

SHAPE = (6, 4, 4)


def features(count: int = 3, shape: Shape = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def trained(source: Shape, wanted: Shape) -> TeacherFilter:
    """A filter whose last layer is no longer zero."""
    made = TeacherFilter(source=source, wanted=wanted)
    nn.init.normal_(made.excite.weight)
    nn.init.normal_(made.excite.bias)
    return made


def test_a_new_filter_passes_everything_unchanged() -> None:
    assert torch.equal(TeacherFilter(source=SHAPE, wanted=SHAPE)(features()), features())


def test_all_gates_of_a_new_filter_are_one() -> None:
    gate = TeacherFilter(source=SHAPE, wanted=SHAPE).gate(features())
    assert torch.equal(gate, torch.ones(3, 6))


def test_gates_lie_between_zero_and_two() -> None:
    gate = trained(SHAPE, SHAPE).gate(100 * features())
    assert 0 <= gate.min() < gate.max() <= 2


def test_a_gate_is_multiplied_onto_its_channel() -> None:
    made = trained(SHAPE, SHAPE)
    by_hand = features() * made.gate(features())[:, :, None, None]
    assert torch.equal(made(features()), by_hand)


def test_gates_differ_from_image_to_image() -> None:
    gate = trained(SHAPE, SHAPE).gate(features(2))
    assert not torch.equal(gate[0], gate[1])


def test_between_equal_shapes_there_is_no_adapter() -> None:
    assert TeacherFilter(source=SHAPE, wanted=SHAPE).adapter is None


@pytest.mark.parametrize("source", [(6, 8, 8), (6, 3, 5), (5, 4, 4), (9, 2, 2)])
def test_features_of_another_shape_are_adapted(source: Shape) -> None:
    made = trained(source, SHAPE)
    assert made(features(2, source)).shape == (2, *SHAPE)


def test_adapted_features_are_gated_after_adaptation() -> None:
    made = trained((5, 8, 8), SHAPE)
    adapted = made.adapt(features(2, (5, 8, 8)))
    by_hand = adapted * made.gate(adapted)[:, :, None, None]
    assert torch.equal(made(features(2, (5, 8, 8))), by_hand)


@pytest.mark.parametrize(("channels", "hidden"), [(6, 16), (64, 16), (128, 32)])
def test_hidden_width_is_a_quarter_of_the_channels_and_at_least_sixteen(
    channels: int, hidden: int
) -> None:
    made = TeacherFilter(source=(channels, 2, 2), wanted=(channels, 2, 2))
    assert made.squeeze.out_features == hidden


def test_a_new_filter_can_learn() -> None:
    made = TeacherFilter(source=SHAPE, wanted=SHAPE)
    made(features()).square().sum().backward()
    assert made.excite.weight.grad is not None
    assert made.excite.weight.grad.abs().sum() > 0


def test_adapting_can_be_asked_for_between_equal_shapes() -> None:
    assert TeacherFilter(source=SHAPE, wanted=SHAPE, adapt=True).adapter is not None


# several teachers behind one feature


def bank() -> FilterBank:
    made = FilterBank(SHAPE, {"same": SHAPE, "other": (5, 2, 2)})
    for own in made.values():
        nn.init.normal_(own.excite.weight)  # type: ignore[union-attr, arg-type]
    return made


def test_a_bank_gives_every_teacher_what_its_own_filter_would() -> None:
    made = bank()
    filtered = made(features())
    for name, own in made.items():
        gated = filtered.form(name) * filtered.gates[name][:, :, None, None]
        assert torch.equal(gated, own(features()))


def test_a_bank_takes_every_name_that_a_dictionary_of_torchs_takes() -> None:
    assert {*dir(FilterBank(SHAPE, {}))} == {*dir(nn.ModuleDict())}


def test_under_autocast_a_bank_speaks_in_thirty_two_bits() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        filtered = bank()(features())
    spoken = [*filtered.adapted.values(), *filtered.gates.values()]
    assert {value.dtype for value in spoken} == {torch.float32}
