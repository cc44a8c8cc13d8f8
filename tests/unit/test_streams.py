"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfka_dist.training.streams import Streams

Draw = Callable[[Streams, range], Tensor]
DRAWS: dict[str, Draw] = {
    "uniform": lambda streams, rows: streams.uniform("x", 3, rows, 5),
    "paired": lambda streams, rows: streams.paired("x", 3, rows, 5),
    "normal": lambda streams, rows: streams.normal("x", 3, rows, 5),
    "label_sets": lambda streams, rows: streams.label_sets("x", 3, rows, 7, 3),
}


@pytest.mark.parametrize("kind", DRAWS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    rows=st.integers(1, 40),
)
def test_rows_do_not_depend_on_how_they_are_shared_by_workers(
    kind: str, seed: int, cuts: list[int], rows: int
) -> None:
    streams, draw = Streams(seed), DRAWS[kind]
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    shares = [range(a, b) for a, b in pairwise(edges)]
    parts = torch.cat([draw(streams, share) for share in shares])
    assert torch.equal(parts, draw(streams, range(rows)))


@pytest.mark.parametrize("kind", DRAWS)
def test_rows_do_not_depend_on_how_many_follow(kind: str) -> None:
    few, many = (DRAWS[kind](Streams(0), range(rows)) for rows in (8, 100))
    assert torch.equal(few, many[:8])


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_is_the_same_again(kind: str) -> None:
    first, second = (DRAWS[kind](Streams(5), range(20)) for _ in range(2))
    assert torch.equal(first, second)


def test_two_rows_of_a_pair_are_the_same_and_pairs_are_not() -> None:
    drawn = Streams(0).paired("x", 3, range(20), 5)
    assert torch.equal(drawn[0::2], drawn[1::2])
    assert len(drawn.unique(dim=0)) == 10


@pytest.mark.parametrize("kind", DRAWS)
def test_torchs_own_generator_is_left_alone(kind: str) -> None:
    before = torch.get_rng_state()
    DRAWS[kind](Streams(0), range(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_own_seed_changes_nothing() -> None:
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(Streams(0).normal("x", 0, range(8), 3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "other",
    [
        Streams(1).uniform("x", 3, range(8), 5),
        Streams(0).uniform("y", 3, range(8), 5),
        Streams(0).uniform("x", 4, range(8), 5),
        Streams(0).uniform("x", 3, range(8, 16), 5),
    ],
    ids=["seed", "stream", "step", "rows"],
)
def test_every_part_of_the_address_makes_other_numbers(other: Tensor) -> None:
    assert not (Streams(0).uniform("x", 3, range(8), 5) == other).any()


def test_no_two_rows_are_alike() -> None:
    assert len(set(Streams(0).uniform("x", 0, range(1000), 1)[:, 0].tolist())) == 1000


@pytest.mark.parametrize("width", [1, 3, 4, 5, 100])
def test_draws_are_as_wide_as_was_asked(width: int) -> None:
    assert Streams(0).uniform("x", 0, range(7), width).shape == (7, width)


def test_uniform_numbers_lie_strictly_between_zero_and_one() -> None:
    drawn = Streams(0).uniform("x", 0, range(10_000), 4)
    assert 0 < drawn.min() < 0.001 < 0.999 < drawn.max() < 1


def test_uniform_numbers_have_the_moments_of_uniform_numbers() -> None:
    drawn = Streams(0).uniform("x", 0, range(10_000), 10)
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_normal_numbers_have_the_moments_of_normal_numbers() -> None:
    drawn = Streams(0).normal("x", 0, range(10_000), 10).double()
    moments = [drawn.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)


def test_normal_columns_are_not_correlated() -> None:
    drawn = Streams(0).normal("x", 0, range(20_000), 6).double()
    apart = drawn.T.corrcoef() - torch.eye(6)
    assert apart.abs().max() < 4 / math.sqrt(20_000)


def test_normal_numbers_are_finite_in_thirty_two_bits() -> None:
    drawn = Streams(0).normal("x", 0, range(10_000), 10)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(labels=st.integers(1, 12), most=st.integers(1, 12), seed=st.integers(0, 1000))
def test_label_sets_hold_one_to_so_many_labels(labels: int, most: int, seed: int) -> None:
    sets = Streams(seed).label_sets("x", 0, range(50), labels, most)
    assert set(sets.flatten().tolist()) <= {0.0, 1.0}
    assert 1 <= sets.sum(1).min() <= sets.sum(1).max() <= min(most, labels)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_all_sizes_of_label_sets_occur_equally_often(most: int) -> None:
    sizes = Streams(0).label_sets("x", 0, range(12_000), 6, most).sum(1).long()
    shares = torch.bincount(sizes, minlength=most + 1)[1:] / 12_000
    assert shares.tolist() == pytest.approx([1 / most] * most, abs=0.02)


@pytest.mark.parametrize("labels", [1, 2, 5, 10])
def test_single_labels_are_equally_frequent_in_every_batch(labels: int) -> None:
    sets = Streams(0).label_sets("x", 0, range(6 * labels), labels, 1)
    assert sets.sum(0).tolist() == [6.0] * labels


@pytest.mark.parametrize("labels", [1, 3, 10])
def test_every_image_is_asked_for_every_label_in_turn(labels: int) -> None:
    sets = [Streams(0).label_sets("x", step, range(8), labels, 1) for step in range(labels)]
    assert torch.stack(sets).sum(0).eq(1).all()


def test_labels_of_larger_sets_are_nearly_equally_frequent() -> None:
    sets = Streams(0).label_sets("x", 0, range(10_000), 5, 3)
    assert sets.mean(0).tolist() == pytest.approx([2 / 5] * 5, abs=0.02)


def test_images_come_in_pairs_that_are_asked_for_the_same_labels() -> None:
    sets = Streams(0).label_sets("x", 0, range(40), 7, 3)
    assert torch.equal(sets[0::2], sets[1::2])


# homes: labels that may be together

POOLS = st.lists(
    st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(pools=POOLS, most=st.integers(1, 5), start=st.integers(0, 40))
def test_label_sets_are_drawn_from_the_pool_of_their_pair(
    pools: list[list[int]], most: int, start: int
) -> None:
    rows = range(start, start + 24)
    sets = Streams(0).label_sets("x", 0, rows, 9, most, pools)
    for row, drawn in zip(rows, sets, strict=True):
        pool = pools[row // 2 % len(pools)]
        assert set(drawn.nonzero()[:, 0].tolist()) <= set(pool)
        assert 1 <= drawn.sum() <= min(most, len(pool))


@settings(max_examples=50, deadline=None)
@given(pools=POOLS, step=st.integers(0, 20))
def test_single_labels_of_a_pool_are_equally_frequent(pools: list[list[int]], step: int) -> None:
    rows = range(2 * len(pools) * 12)  # 12 pairs of each pool, whose size divides 12
    sets = Streams(0).label_sets("x", step, rows, 9, 1, pools)
    homes = torch.arange(len(rows)) // 2 % len(pools)
    for home, pool in enumerate(pools):
        assert sets[homes == home][:, pool].sum(0).tolist() == [24 / len(pool)] * len(pool)


@settings(max_examples=30, deadline=None)
@given(pools=POOLS, at=st.integers(1, 39))
def test_pools_do_not_depend_on_how_rows_are_shared_by_workers(
    pools: list[list[int]], at: int
) -> None:
    whole, *shares = (
        Streams(0).label_sets("x", 0, rows, 9, 3, pools)
        for rows in (range(40), range(at), range(at, 40))
    )
    assert torch.equal(whole, torch.cat(shares))
