"""Networks cut into blocks and a head: the parts are the whole, or the cut is refused."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dfka_dist.errors import InputError
from dfka_dist.models.backbones import ConvNet
from dfka_dist.models.splitting import BlockChain, cut

BLOCKS = ["block1", "block2", "block3"]


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ConvNet(labels=3, widths=[4, 6, 8])
        made(pictures(32))  # BatchNorm has seen something
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def chain(network: nn.Module) -> BlockChain:
    return cut(copy.deepcopy(network), BLOCKS, pictures(2), "teachers.0").requires_grad_(False)


def refusal(network: nn.Module, blocks: list[str]) -> InputError:
    with pytest.raises(InputError) as caught:
        cut(network.eval(), blocks, pictures(2), "teachers.0")
    assert caught.value.key == "teachers.0.blocks"
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


class Litter:
    """Garbage in a cycle that touches a tensor of its own when it is collected."""

    def __init__(self, tensor: Tensor) -> None:
        self.own, self.tensor = self, tensor

    def __del__(self) -> None:
        self.tensor.is_pinned()


class Littering(ConvNet):
    old = torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(50):
            Litter(self.old)
        return super().forward(images)


# what a cut network is


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_the_parts_together_are_the_whole_bit_for_bit(
    network: nn.Module, chain: BlockChain, count: int
) -> None:
    images = pictures(count, seed=count)
    assert torch.equal(chain(images), network(images))


def test_others_garbage_does_not_get_into_a_cut() -> None:
    """How a network is cut decides what its saved tensors are called: no matter of luck."""
    made = Littering(labels=3, widths=[4, 6, 8]).eval()
    was = gc.get_threshold()
    gc.set_threshold(1)
    try:
        parts = cut(made, BLOCKS, pictures(2), "teachers.0").stages
    finally:
        gc.set_threshold(*was)
    assert all(isinstance(part, fx.GraphModule) for part in parts)
    assert not any("is_pinned" in str(node) for part in parts for node in part.graph.nodes)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_gradients_through_the_parts_are_those_of_the_whole_bit_for_bit(
    network: nn.Module, chain: BlockChain, count: int
) -> None:
    cut_images, whole_images = (pictures(count).requires_grad_() for _ in range(2))
    chain(cut_images).square().sum().backward()
    network(whole_images).square().sum().backward()
    assert cut_images.grad is not None and whole_images.grad is not None
    assert torch.equal(cut_images.grad, whole_images.grad)


@settings(max_examples=6, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=1, max_size=4), count=st.integers(1, 5))
def test_any_widths_and_any_number_of_blocks_can_be_cut(widths: list[int], count: int) -> None:
    network = ConvNet(labels=2, widths=widths).eval()
    parts = cut(copy.deepcopy(network), network.block_names, pictures(2), "teachers.0")
    assert parts.depth == len(widths)
    assert torch.equal(parts(pictures(count)), network(pictures(count)))


def test_blocks_may_be_fewer_than_the_network_has(network: nn.Module) -> None:
    parts = cut(copy.deepcopy(network), ["block2"], pictures(2), "teachers.0")
    assert parts.depth == 1
    assert torch.equal(parts(pictures(3)), network(pictures(3)))


def test_blocks_count_in_the_order_in_which_they_run(network: nn.Module) -> None:
    parts = cut(copy.deepcopy(network), ["block2", "block1"], pictures(2), "teachers.0")
    assert [tuple(value.shape[1:]) for value in parts.walk(pictures(1))][:2] == [
        (4, 8, 8),
        (6, 4, 4),
    ]


def test_walking_shows_what_lies_behind_every_block(network: nn.Module, chain: BlockChain) -> None:
    seen: list[Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *said: seen.append(said[2]))
        for name in BLOCKS
    ]
    network(pictures(2))
    for handle in handles:
        handle.remove()
    *walked, _ = chain.walk(pictures(2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(walked, seen, strict=True))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_entering_behind_a_block_gives_the_same_logits(chain: BlockChain, depth: int) -> None:
    value = pictures(3)
    inside = [value, *chain.walk(value)]
    assert torch.equal(chain(inside[depth], start=depth), chain(value))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_tail_is_what_lies_behind_its_depth(chain: BlockChain, depth: int) -> None:
    inside = [pictures(3), *chain.walk(pictures(3))]
    assert torch.equal(chain.tail(depth)(inside[depth]), chain(pictures(3)))


def test_parts_are_found_by_the_path_they_had(network: nn.Module, chain: BlockChain) -> None:
    theirs = network.get_submodule("block2.1").state_dict()
    ours = chain.find("block2.1").state_dict()
    assert torch.equal(ours["running_mean"], theirs["running_mean"])


def test_path_that_the_network_did_not_have_is_no_part(chain: BlockChain) -> None:
    with pytest.raises(KeyError):
        chain.find("block9.1")


@pytest.mark.parametrize(("path", "stage"), [("block1.1", 0), ("block3", 2), ("classifier", 3)])
def test_a_part_knows_its_stage(chain: BlockChain, path: str, stage: int) -> None:
    assert chain.place(path) == stage


def test_cutting_leaves_the_network_as_it_was(network: nn.Module) -> None:
    own = copy.deepcopy(network)
    cut(own, BLOCKS, pictures(2), "teachers.0")
    before, after = network.state_dict(), own.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# what is refused


def test_unknown_block_is_refused_by_those_that_exist() -> None:
    error = refusal(ConvNet(widths=[4, 6]), ["block1", "block7"])
    assert error.what == "no block is called 'block7'"
    assert error.remedy == "some of block1, block2, pool, classifier"


def test_unknown_block_inside_one_container_lists_what_is_inside() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ConvNet(widths=[4])

    assert "model.block1" in refusal(Wrapped(), ["block1"]).remedy


class Forked(nn.Module):
    """The picture flows past both blocks to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(1, 2, kernel_size=3, stride=2)
        self.block2 = nn.Conv2d(2, 2, kernel_size=1)
        self.head = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block1(images)
        again = self.block2(features) + images.mean()
        logits: Tensor = self.head(again.mean((2, 3)))
        return logits


def test_several_tensors_between_blocks_are_refused() -> None:
    assert "behind block 'block2' there are several" in refusal(Forked(), ["block1", "block2"]).what


class TwoThings(nn.Module):
    """Its first block gives two tensors."""

    class Pair(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images + 1, images * 2

    def __init__(self) -> None:
        super().__init__()
        self.block1 = self.Pair()
        self.head = nn.Linear(1, 3)

    def forward(self, images: Tensor) -> Tensor:
        left, right = self.block1(images)
        logits: Tensor = self.head((left + right).mean((2, 3)))
        return logits


def test_block_that_gives_several_tensors_is_refused() -> None:
    assert "behind block 'block1' there are several" in refusal(TwoThings(), ["block1"]).what


def test_block_that_never_runs_is_refused() -> None:
    class Idle(ConvNet):
        def __init__(self) -> None:
            super().__init__(widths=[4])
            self.spare = nn.Conv2d(1, 1, kernel_size=1)

    assert "spare" in refusal(Idle(), ["block1", "spare"]).what
