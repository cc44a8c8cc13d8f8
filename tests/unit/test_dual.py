"""One block of the dual generator: what is frozen stays, and the link leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfka_dist.config import InputSpec
from dfka_dist.models.dual import DualBlock
from dfka_dist.models.filters import Shape
from dfka_dist.models.preprocessing import Preprocessing, channels_last
from dfka_dist.models.target import trunk, trunk_shapes

SPEC = InputSpec(channels=1, size=16)
SHAPES = [(1, 16, 16), (4, 8, 8), (6, 4, 4)]
WANTED: dict[str, Shape] = {"same": (6, 4, 4), "other": (5, 3, 3)}


def block(*, frozen: int = 1, link: Shape | None = (4, 8, 8)) -> DualBlock:
    """T^2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = trunk("convnet", {"widths": [4, 6]}, SPEC)
        assert trunk_shapes(blocks, SPEC) == SHAPES
        return DualBlock(
            Preprocessing(SPEC),
            blocks,
            frozen=frozen,
            source=SHAPES[2],
            wanted=WANTED,
            link=None if link is None else (link, SHAPES[1]),
        )


def random(*shape: int) -> Tensor:
    return torch.rand(5, *shape, generator=torch.Generator().manual_seed(len(shape)))


def stepped(made: DualBlock, link: Tensor | None = None, *, own: bool = True) -> set[str]:
    """What a step changes, parameters and buffers; by the stream of the images or the link's."""
    before = {name: value.clone() for name, value in made.state_dict().items()}
    streams = made(random(1, 16, 16), link)
    filtered = streams[0] if own else streams[1]
    gated = [filtered.form(n) * gate[:, :, None, None] for n, gate in filtered.gates.items()]
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    torch.stack([(value * random(*value.shape[1:])).sum() for value in gated]).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {name for name, value in made.state_dict().items() if not value.equal(before[name])}


def test_blocks_in_front_keep_parameters_and_buffers_through_a_step() -> None:
    changed = stepped(block().train())
    assert not any(name.startswith("blocks.0.") for name in changed)


def test_the_block_itself_learns_with_its_filters() -> None:
    changed = stepped(block().train())
    assert {
        "blocks.1.0.weight",
        "blocks.1.1.running_mean",
        "filters.other.adapter.weight",
    } < changed


def test_with_every_block_frozen_only_filters_learn() -> None:
    changed = stepped(block(frozen=2, link=None).train())
    assert changed and all(name.startswith("filters.") for name in changed)


def test_frozen_blocks_stay_on_their_running_statistics() -> None:
    made = block().train()
    assert [part.training for part in made.blocks] == [False, True]


def test_without_a_link_there_is_one_stream() -> None:
    assert block()(random(1, 16, 16))[1] is None


def test_the_link_leaves_no_trace_in_running_statistics() -> None:
    alone, linked = block().train(), block().train()
    alone(random(1, 16, 16))
    linked(random(1, 16, 16), random(4, 8, 8))
    buffers = dict(alone.named_buffers())
    assert all(value.equal(buffers[name]) for name, value in linked.named_buffers())


def test_the_link_trains_the_block() -> None:
    changed = stepped(block().train(), random(4, 8, 8), own=False)
    assert "blocks.1.0.weight" in changed


def test_the_link_is_normalised_by_its_own_batch() -> None:
    made = block().train()
    _, small = made(random(1, 16, 16), random(4, 8, 8))
    _, large = made(random(1, 16, 16), 9 * random(4, 8, 8))
    torch.testing.assert_close(small.feature, large.feature, rtol=1e-3, atol=1e-3)


def test_running_statistics_are_tracked_again_after_the_link() -> None:
    made = block().train()
    made(random(1, 16, 16), random(4, 8, 8))
    layers = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(layer.track_running_stats for layer in layers)


def test_a_link_of_the_blocks_own_shape_needs_no_adapter() -> None:
    assert block().adapter is None


@pytest.mark.parametrize("link", [(4, 5, 5), (7, 8, 8), (3, 12, 12)])
def test_a_link_of_another_shape_is_adapted(link: Shape) -> None:
    _, linked = block(link=link)(random(1, 16, 16), random(*link))
    assert linked.feature.shape == (5, *SHAPES[2])


def test_the_adapter_of_a_link_learns() -> None:
    changed = stepped(block(link=(7, 5, 5)).train(), random(7, 5, 5), own=False)
    assert "adapter.1.weight" in changed


def test_both_streams_go_through_the_same_block_and_filters() -> None:
    """Fed with what the first blocks say of the images, the link says the same."""
    made = block().eval()
    with torch.no_grad():
        before = made.blocks[0](channels_last(made.preprocessing(random(1, 16, 16))))
        own, linked = made(random(1, 16, 16), before)
    assert torch.equal(own.feature, linked.feature)
    assert all(torch.equal(own.gates[name], linked.gates[name]) for name in WANTED)
