"""Into how many servers a teacher is cut, and where, by what its parts need of memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import parse
from dfka_dist.teachers.cutting import CONTEXT, GIB, Needs, balanced, cut_teachers, needs_of
from dfka_dist.teachers.interface import TeacherDescription
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.teachers.placement import PlacementPlan, plan

sizes = st.lists(st.integers(0, 10**9), min_size=1, max_size=7)


def described(
    config: RunConfig, fixed: Sequence[int], graph: Sequence[int], sums: Sequence[int] = ()
) -> Any:
    """All teachers of a configuration, each with parts of these bytes."""
    return {
        spec.name: TeacherDescription(
            spec=spec,
            shapes=((1, 1, 1),) * len(fixed),
            embedding=None,
            layers=(),
            running_var=torch.zeros(0),
            parameters=0,
            tail_parameters=(0,) * len(fixed),
            stage_bytes=tuple(fixed),
            graph_bytes=tuple(graph),
            sums_bytes=tuple(sums) or (0,) * len(fixed),
            sha256="",
        )
        for spec in config.teachers
    }


def config(blocks: int, teachers: int = 1, **serving: Any) -> RunConfig:
    one = {
        "source": "builtin:convnet",
        "task": "multi_label",
        "labels": ["a"],
        "blocks": [f"block{index}" for index in range(1, blocks + 1)],
        "input": {"channels": 1, "size": 16},
    }
    named = [{"name": f"t{index}", **one} for index in range(teachers)]
    plain = {"cache_megabytes": 1, "precision": "fp32"}
    return parse({"run": {"name": "test"}, "teachers": named, "serving": plain | serving})


def gpus(*gigabytes: float | None, each: float = 1) -> list[NodeResources]:
    return [
        NodeResources(name=f"n{i}", cpus=64, gpus=each, gpu_gigabytes=g)
        for i, g in enumerate(gigabytes)
    ]


def needs(fixed: Sequence[int], graph: Sequence[int] | None = None) -> Needs:
    return Needs(fixed, graph or [0] * len(fixed), 0)


@given(fixed=sizes, data=st.data())
def test_every_part_is_in_exactly_one_shard(fixed: list[int], data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, len(fixed)))
    found = balanced(needs(fixed), shards)
    assert list(itertools.chain(*found)) == list(range(len(fixed)))
    assert len(found) == shards and all(found)


@given(fixed=sizes, data=st.data())
def test_no_other_cut_has_a_smaller_largest_shard(fixed: list[int], data: st.DataObject) -> None:
    own = needs(fixed)
    shards = data.draw(st.integers(1, len(fixed)))
    cuts = itertools.combinations(range(1, len(fixed)), shards - 1)
    all_of_them = [
        max(own.of(range(a, b)) for a, b in itertools.pairwise((0, *ends, len(fixed))))
        for ends in cuts
    ]
    assert max(map(own.of, balanced(own, shards))) == min(all_of_them)


def test_a_server_needs_its_parts_the_batch_at_work_and_the_cache() -> None:
    own = Needs([10, 20], [3, 4], cache=100)
    assert own.of(range(2)) == CONTEXT + 30 + 7 + 100


def test_a_teacher_that_fits_is_not_cut() -> None:
    wanted = config(3, gpus=1)
    sizes = described(wanted, [GIB] * 4, [0] * 4)
    assert cut_teachers(wanted, gpus(8), sizes) == {"t0": [range(4)]}


def test_a_teacher_that_does_not_fit_is_cut_into_as_few_as_fit() -> None:
    wanted = config(3, gpus=1)
    sizes = described(wanted, [3 * GIB, GIB, GIB, GIB], [0] * 4)
    assert cut_teachers(wanted, gpus(4, each=4), sizes) == {"t0": [range(1), range(1, 4)]}


def test_a_fraction_of_a_gpu_has_a_fraction_of_its_memory() -> None:
    wanted = config(3, gpus=0.5)
    sizes = described(wanted, [GIB] * 4, [0] * 4)
    assert len(cut_teachers(wanted, gpus(6), sizes)["t0"]) == 2


def test_the_smallest_gpu_counts() -> None:
    wanted = config(3, gpus=1)
    sizes = described(wanted, [GIB] * 4, [0] * 4)
    assert len(cut_teachers(wanted, gpus(80, 3), sizes)["t0"]) == 2


def test_what_the_configuration_says_of_a_gpu_counts_more_than_what_nodes_say() -> None:
    wanted = config(3, gpus=1, gpu_gigabytes=3)
    sizes = described(wanted, [GIB] * 4, [0] * 4)
    assert len(cut_teachers(wanted, gpus(80), sizes)["t0"]) == 2


def test_only_gpus_of_nodes_where_servers_may_be_count() -> None:
    wanted = config(3, gpus=1, node_labels={"role": "teacher"})
    sizes = described(wanted, [GIB] * 4, [0] * 4)
    small, large = gpus(3, 80)
    large = large.model_copy(update={"labels": {"role": "teacher"}})
    assert len(cut_teachers(wanted, [small, large], sizes)["t0"]) == 1


@pytest.mark.parametrize(
    ("serving", "gigabytes", "checked"),
    [
        ({"gpus": 1}, None, False),
        ({"gpus": 1}, 80, True),
        ({"gpus": 1, "gpu_gigabytes": 80}, None, True),
        ({"gpus": 0}, None, True),
    ],
)
def test_a_plan_says_whether_memory_was_known(
    serving: dict[str, Any], gigabytes: float | None, checked: bool
) -> None:
    assert plan(config(1, **serving), gpus(gigabytes)).is_checked == checked


@pytest.mark.parametrize("nodes", [gpus(None), gpus(None, None)])
def test_where_memory_is_not_known_nothing_is_cut(nodes: list[NodeResources]) -> None:
    wanted = config(3, gpus=1)
    assert len(cut_teachers(wanted, nodes, described(wanted, [GIB] * 4, [0] * 4))["t0"]) == 1


def test_in_bf16_a_copy_of_the_parameters_counts_too() -> None:
    sizes = [3 * GIB, 0]
    plain = config(1, gpus=1)
    assert len(cut_teachers(plain, gpus(4), described(plain, sizes, [0, 0]))["t0"]) == 1
    wanted = config(1, gpus=1, precision="bf16")
    with pytest.raises(InputError, match=r"needs 5\.00 GiB"):
        cut_teachers(wanted, gpus(4, each=2), described(wanted, sizes, [0, 0]))


def test_a_batch_at_work_counts_too() -> None:
    wanted = config(1, gpus=1)
    batch = wanted.training.batch_size
    sizes = described(wanted, [0, 0], [GIB // batch] * 2)
    assert len(cut_teachers(wanted, gpus(2), sizes)["t0"]) == 2


def test_servers_that_do_not_share_a_gpu_are_given_one_each() -> None:
    """Two of 0.6 do not fit into one, so three take three."""
    nodes = [NodeResources(name="n", cpus=8, gpus=4)]
    (bundle,) = plan(config(3, shards=3, gpus=0.6), nodes).bundles
    assert bundle["GPU"] == 3


def test_a_part_that_fits_no_gpu_is_refused_with_what_it_needs() -> None:
    wanted = config(1, gpus=1)
    with pytest.raises(
        InputError, match=r"t0 in 2 servers needs 9\.50 GiB .* GPU is 4\.00"
    ) as caught:
        cut_teachers(wanted, gpus(4), described(wanted, [9 * GIB, GIB], [0, 0]))
    assert caught.value.key == "serving.gpus"


def test_as_many_shards_as_were_asked_for() -> None:
    found = cut_teachers(config(3, shards=3), [], None)["t0"]
    assert found == [range(1), range(1, 2), range(2, 4)]


def test_more_shards_than_a_teacher_has_parts_are_refused() -> None:
    with pytest.raises(InputError, match=r"^serving\.shards: is 5, and t0 has 4 parts"):
        cut_teachers(config(3, shards=5), [], None)


# in the plan

plans = st.builds(
    lambda teachers, replicas, shards, cpus, gpus, strategy: config(
        3, teachers, replicas=replicas, shards=shards, cpus=cpus, gpus=gpus, strategy=strategy
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.1, 1.0, 2.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]),
    st.sampled_from(["pack", "spread"]),
)
clusters = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 8)), min_size=1, max_size=5).map(
    lambda all_of_them: [
        NodeResources(name=f"n{i}", cpus=c, gpus=g) for i, (c, g) in enumerate(all_of_them)
    ]
)


def planned(wanted: RunConfig, nodes: list[NodeResources]) -> PlacementPlan | None:
    try:
        return plan(wanted, nodes)
    except InputError:
        return None


@given(wanted=plans, nodes=clusters)
def test_every_part_of_every_replica_has_exactly_one_seat(
    wanted: RunConfig, nodes: list[NodeResources]
) -> None:
    found = planned(wanted, nodes)
    if found is None:
        return
    seats = [(s.teacher, s.replica, part) for s in found.seats for part in s.stages]
    replicas = range(wanted.serving.replicas)
    assert seats == [(t.name, r, p) for r in replicas for t in wanted.teachers for p in range(4)]


@given(wanted=plans, nodes=clusters)
def test_no_node_and_no_bundle_holds_more_than_it_has(
    wanted: RunConfig, nodes: list[NodeResources]
) -> None:
    found = planned(wanted, nodes)
    if found is None:
        return
    for index, bundle in enumerate(found.bundles):
        own = [seat for seat in found.seats if seat.bundle == index]
        assert len({seat.node for seat in own}) == 1
        assert all(bundle[k] >= found.server[k] * len(own) - 1e-9 for k in found.server)
    for node in nodes:
        bundles = {seat.bundle for seat in found.seats if seat.node == node.name}
        for kind, there in (("CPU", node.cpus), ("GPU", node.gpus)):
            assert sum(found.bundles[b].get(kind, 0) for b in bundles) <= there + 1e-6


@given(wanted=plans, nodes=clusters)
def test_a_gpu_bundle_beyond_one_is_whole(wanted: RunConfig, nodes: list[NodeResources]) -> None:
    """Ray gives no half GPUs beside whole ones."""
    found = planned(wanted, nodes)
    amounts = [bundle.get("GPU", 0) for bundle in found.bundles] if found else []
    assert all(amount <= 1 or float(amount).is_integer() for amount in amounts)


def test_shards_of_a_replica_are_on_one_node_where_one_has_room() -> None:
    nodes = [NodeResources(name=f"n{i}", cpus=c) for i, c in enumerate([3, 4])]
    found = plan(config(3, shards=4, cpus=1.0), [*nodes, NodeResources(name="n2", cpus=4)])
    assert {seat.node for seat in found.seats} == {"n1"}
    assert found.bundles == ({"CPU": 4.0},)


@pytest.mark.parametrize("strategy", ["pack", "spread"])
def test_shards_of_a_replica_that_no_node_can_hold_are_on_as_few_as_can(strategy: str) -> None:
    """Those of a node in one bundle, which Ray cannot spread; the largest room first."""
    nodes = [NodeResources(name=f"n{i}", cpus=c) for i, c in enumerate([1, 1, 3, 2])]
    found = plan(config(3, shards=4, cpus=1.0, strategy=strategy), nodes)
    assert [seat.node for seat in found.seats] == ["n2", "n2", "n2", "n3"]
    assert found.bundles == ({"CPU": 3.0}, {"CPU": 1.0})


@pytest.mark.parametrize(("shards", "strategy"), [(1, "SPREAD"), (4, "PACK")])
def test_shards_that_wait_for_nodes_to_come_are_packed(shards: int, strategy: str) -> None:
    wanted = config(3, shards=shards, cpus=1.0, strategy="spread", wait_for_nodes=True)
    assert plan(wanted, []).strategy == strategy


@given(wanted=plans, nodes=clusters)
def test_no_device_gives_more_than_itself(wanted: RunConfig, nodes: list[NodeResources]) -> None:
    found = planned(wanted, nodes)
    given = (
        Counter((s.node, s.device) for s in found.seats) if found and wanted.serving.gpus else {}
    )
    assert all(count * wanted.serving.gpus <= 1 + 1e-6 for count in given.values())
    there = {(node.name, i) for node in nodes for i in range(int(node.gpus))}
    assert set(given) <= there


@given(wanted=plans, nodes=clusters, data=st.data())
def test_no_device_holds_more_than_its_memory(
    wanted: RunConfig, nodes: list[NodeResources], data: st.DataObject
) -> None:
    """By what every server's parts, its batch at work and its cache need."""
    gigabytes = data.draw(st.lists(st.sampled_from([2, 4, 8]), min_size=5, max_size=5))
    nodes = [
        node.model_copy(update={"gpu_gigabytes": g})
        for node, g in zip(nodes, gigabytes, strict=False)
    ]
    parts = data.draw(st.lists(st.sampled_from([0, GIB // 4, GIB]), min_size=4, max_size=4))
    known = described(wanted, parts, [2**20] * 4)
    try:
        found = plan(wanted, nodes, known)
    except InputError:
        return
    held: Counter[tuple[str, int | None]] = Counter()
    for seat in found.seats if wanted.serving.gpus else ():
        held[seat.node, seat.device] += needs_of(wanted, known[seat.teacher]).of(seat.stages)
    memory = {node.name: (node.gpu_gigabytes or 0) * GIB for node in nodes}
    assert all(needed <= memory[node] + len(held) for (node, _), needed in held.items())


@given(wanted=plans, nodes=clusters)
def test_shards_of_a_replica_are_on_as_few_nodes_as_can_be(
    wanted: RunConfig, nodes: list[NodeResources]
) -> None:
    """Of the first replica, which finds every node empty: as many as the largest can do with."""
    found = planned(wanted, nodes)
    if found is None:
        return
    cpus, gpus = wanted.serving.cpus, wanted.serving.gpus
    room = sorted(
        min(int(n.cpus / cpus + 1e-9), int(n.gpus) * int(1 / gpus + 1e-9) if gpus else 99)
        for n in nodes
    )
    first = [s for s in found.seats if (s.teacher, s.replica) == ("t0", 0)]
    left, least = len(first), 0
    while left > 0:
        left, least = left - room.pop(), least + 1
    assert len({seat.node for seat in first}) == least


def test_a_plan_says_which_parts_a_shard_holds() -> None:
    lines = plan(config(3, shards=2), [NodeResources(name="n", cpus=8)]).lines()
    assert lines[1] == "  server of t0, replica 0, shard 0 (parts 1 to 2): 0.5 CPU on n"


def test_sixty_four_gpus_are_planned_on_a_laptop() -> None:
    """Eight nodes of eight; 12 teachers, each cut over 2 whole GPUs, in 2 replicas."""
    wanted = config(3, 12, gpus=1, replicas=2, cpus=1.0)
    nodes = [NodeResources(name=f"n{i}", cpus=96, gpus=8, gpu_gigabytes=4) for i in range(8)]
    found = plan(wanted, nodes, described(wanted, [3 * GIB // 2] * 4, [0] * 4))
    assert len(found.seats) == 48
    by_replica: dict[tuple[str, int], set[str]] = {}
    for seat in found.seats:
        by_replica.setdefault((seat.teacher, seat.replica), set()).add(seat.node)
    assert all(len(nodes) == 1 for nodes in by_replica.values())


@pytest.mark.parametrize(
    ("losses", "search", "servers"),
    [
        ({"batch_norm": 1.0}, None, 2),
        ({"batch_norm": 0.0}, None, 1),
        ({"batch_norm": 0.0}, {"space": {"losses.batch_norm": {"linear": [0, 1]}}}, 2),
    ],
)
def test_what_statistics_save_is_counted_where_somebody_asks_for_them(
    losses: dict[str, float], search: dict[str, Any] | None, servers: int
) -> None:
    """A batch of 128: two parts of 4 MiB an image, and of 4 MiB more for the statistics."""
    asked = {"training": {"batch_size": 128}, "losses": losses, "search": search}
    wanted = parse(config(1, gpus=1.0).model_dump() | asked)
    known = described(wanted, [0, 0], [2**22] * 2, [2**22] * 2)
    (parts,) = cut_teachers(wanted, gpus(1.8), known).values()
    assert len(parts) == servers
