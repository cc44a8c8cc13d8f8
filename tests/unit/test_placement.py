"""Every server has one seat, and no node more than it can carry."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import parse
from dfka_dist.teachers.nodes import NodeResources, read_nodes
from dfka_dist.teachers.placement import PlacementPlan, plan


def config(teachers: int = 2, **sections: dict[str, Any]) -> RunConfig:
    one = {
        "source": "builtin:convnet",
        "task": "multi_label",
        "labels": ["a"],
        "blocks": ["block1"],
        "input": {"channels": 1, "size": 16},
    }
    named = [{"name": f"t{index}", **one} for index in range(teachers)]
    return parse({"run": {"name": "test"}, "teachers": named, **sections})


def nodes(*cpus: float, gpus: float = 0.0) -> list[NodeResources]:
    return [NodeResources(name=f"n{i}", cpus=c, gpus=gpus) for i, c in enumerate(cpus)]


def seats_by_node(found: PlacementPlan) -> dict[str, int]:
    return dict(Counter(seat.node for seat in found.seats))


def refusal(*arguments: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan(*arguments)
    return caught.value


# laws

configs = st.builds(
    lambda teachers, replicas, cpus, gpus, workers, worker_gpus, strategy: config(
        teachers,
        serving={"replicas": replicas, "cpus": cpus, "gpus": gpus, "strategy": strategy},
        training={"workers": workers, "worker_gpus": worker_gpus, "batch_size": 12},
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 0, 1]),
    st.sampled_from(["pack", "spread"]),
)
clusters = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 4.0, 16.0]), st.sampled_from([0.0, 0.0, 1.0, 4.0])),
    min_size=1,
    max_size=4,
).map(
    lambda machines: [
        NodeResources(name=f"n{i}", cpus=c, gpus=g) for i, (c, g) in enumerate(machines)
    ]
)


def planned(wanted: RunConfig, machines: list[NodeResources]) -> PlacementPlan:
    try:
        return plan(wanted, machines)
    except InputError:
        assume(False)
        raise


@settings(max_examples=40, deadline=None)
@given(wanted=configs, machines=clusters)
def test_every_replica_has_exactly_one_seat(
    wanted: RunConfig, machines: list[NodeResources]
) -> None:
    seats = [(seat.teacher, seat.replica) for seat in planned(wanted, machines).seats]
    expected = [(t.name, r) for t in wanted.teachers for r in range(wanted.serving.replicas)]
    assert sorted(seats) == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(wanted=configs, machines=clusters)
def test_every_seat_has_a_bundle_of_its_own(
    wanted: RunConfig, machines: list[NodeResources]
) -> None:
    found = planned(wanted, machines)
    assert sorted(seat.bundle for seat in found.seats) == list(range(len(found.bundles)))


@settings(max_examples=40, deadline=None)
@given(wanted=configs, machines=clusters)
def test_no_node_carries_more_than_it_has(wanted: RunConfig, machines: list[NodeResources]) -> None:
    found = planned(wanted, machines)
    for node in machines:
        here = [found.bundles[seat.bundle] for seat in found.seats if seat.node == node.name]
        for kind, there in (("CPU", node.cpus), ("GPU", node.gpus)):
            assert sum(bundle.get(kind, 0.0) for bundle in here) <= there + 1e-6


@settings(max_examples=50, deadline=None)
@given(wanted=configs, machines=clusters)
def test_the_same_question_has_the_same_plan(
    wanted: RunConfig, machines: list[NodeResources]
) -> None:
    assert planned(wanted, machines) == plan(wanted, machines)


@settings(max_examples=40, deadline=None)
@given(wanted=configs, machines=clusters)
def test_a_refusal_is_one_line(wanted: RunConfig, machines: list[NodeResources]) -> None:
    try:
        outcome = str(plan(wanted, machines).strategy)
    except InputError as error:
        outcome = str(error)
    assert len(outcome.splitlines()) == 1


@settings(max_examples=40, deadline=None)
@given(wanted=configs, machines=clusters)
def test_a_cluster_that_grows_refuses_nothing(
    wanted: RunConfig, machines: list[NodeResources]
) -> None:
    serving = wanted.serving.model_copy(update={"wait_for_nodes": True})
    found = plan(wanted.model_copy(update={"serving": serving}), machines)
    assert len(found.seats) == len(wanted.teachers) * wanted.serving.replicas


# cases


def test_servers_are_packed_onto_the_first_node_that_has_room() -> None:
    found = plan(config(serving={"cpus": 1.0, "strategy": "pack"}), nodes(3, 3))
    assert seats_by_node(found) == {"n0": 2}


def test_a_node_holds_a_replica_of_every_teacher_where_it_has_the_room() -> None:
    found = plan(
        config(8, serving={"gpus": 1.0, "cpus": 1.0, "replicas": 4, "strategy": "pack"}),
        nodes(*[16.0] * 8, gpus=8.0),
    )
    for node in ("n0", "n3"):
        held = {seat.teacher for seat in found.seats if seat.node == node}
        assert held == {f"t{index}" for index in range(8)}


def test_servers_are_spread_over_the_emptiest_nodes() -> None:
    found = plan(config(serving={"cpus": 1.0, "strategy": "spread"}), nodes(3, 3))
    assert seats_by_node(found) == {"n0": 1, "n1": 1}


@pytest.mark.parametrize(("strategy", "asked"), [("pack", "PACK"), ("spread", "SPREAD")])
def test_ray_is_asked_for_the_strategy(strategy: str, asked: str) -> None:
    assert plan(config(serving={"strategy": strategy}), nodes(8)).strategy == asked


def test_every_worker_gets_its_resources() -> None:
    training = {"workers": 3, "worker_cpus": 2.0, "batch_size": 6}
    assert plan(config(training=training), nodes(16)).workers == ({"CPU": 2.0},) * 3


def test_all_cpus_are_added_up() -> None:
    serving, training = {"cpus": 0.5, "replicas": 2}, {"worker_cpus": 1.5}
    assert plan(config(serving=serving, training=training), nodes(8)).cpus == 3.5


def test_without_gpus_none_are_asked_for() -> None:
    assert plan(config(), nodes(8, gpus=4)).bundles == ({"CPU": 0.5},) * 2


def test_servers_may_share_a_gpu() -> None:
    found = plan(config(serving={"gpus": 0.5}), nodes(8, gpus=1))
    assert found.bundles == ({"CPU": 0.5, "GPU": 0.5},) * 2


def test_more_gpus_for_servers_than_there_are_are_refused_by_their_key() -> None:
    error = refusal(config(serving={"gpus": 1.0}), nodes(8, gpus=1))
    assert error.key == "serving.gpus"
    assert "2 GPUs where there are 1" in error.what


def test_more_gpus_for_workers_than_there_are_are_refused_by_their_key() -> None:
    training = {"workers": 2, "worker_gpus": 1, "batch_size": 4}
    error = refusal(config(training=training), nodes(8, gpus=1))
    assert error.key == "training.worker_gpus"


def test_parts_of_gpus_that_no_device_has_left_are_refused() -> None:
    """Two devices have 0.4 left each, and Ray would wait for ever."""
    error = refusal(config(3, serving={"gpus": 0.6}), nodes(8, gpus=2))
    assert (error.key, error.what) == ("serving", "no node has 0.5 CPU and 0.6 GPU left for t2")


def test_parts_of_gpus_leave_whole_ones_to_workers() -> None:
    wanted = config(2, serving={"gpus": 0.5}, training={"worker_gpus": 1})
    assert [seat.device for seat in plan(wanted, nodes(8, gpus=2)).seats] == [0, 0]


def test_a_worker_that_finds_no_whole_gpu_is_refused() -> None:
    wanted = config(2, serving={"gpus": 0.6}, training={"worker_gpus": 1})
    machines = nodes(8, 8, gpus=1) + nodes(8, gpus=0.9)
    assert refusal(wanted, machines).key == "training.workers"


def test_gpus_that_lie_on_too_many_nodes_are_refused() -> None:
    error = refusal(config(serving={"gpus": 0.6}), nodes(8, 8, 8, gpus=0.5))
    assert error.key == "serving"


def test_more_cpus_for_servers_than_there_are_are_refused_by_their_key() -> None:
    assert refusal(config(serving={"cpus": 8.0}), nodes(4)).key == "serving.cpus"


def test_more_cpus_for_workers_than_there_are_are_refused_by_their_key() -> None:
    error = refusal(config(training={"worker_cpus": 9.0}), nodes(4))
    assert error.key == "training.worker_cpus"


def test_a_worker_that_no_node_can_hold_is_refused() -> None:
    error = refusal(config(training={"worker_cpus": 3.0}), nodes(2, 2, 2))
    assert error.key == "training.workers"


def test_nodes_that_share_a_name_count_each() -> None:
    machines = [NodeResources(name="10.0.0.1", cpus=1) for _ in range(3)]
    assert len(plan(config(serving={"cpus": 1.0}), machines).seats) == 2


def test_a_cluster_without_nodes_is_refused() -> None:
    assert refusal(config(), []).key == "serving.cpus"


def test_the_plan_names_every_server_and_worker_in_a_line() -> None:
    training = {"workers": 2, "batch_size": 4}
    lines = plan(config(serving={"replicas": 2}, training=training), nodes(8)).lines()
    assert len(lines) == 1 + 4 + 2
    assert lines[2] == "  server of t1, replica 0: 0.5 CPU on n0"


# the nodes of a file


def written(folder: Path, text: str) -> Path:
    path = folder / "nodes.yaml"
    path.write_text(text)
    return path


def test_nodes_are_read_from_a_file(tmp_path: Path) -> None:
    found = read_nodes(written(tmp_path, "- {name: a, cpus: 4}\n- {name: b, cpus: 8, gpus: 2}\n"))
    assert found == [
        NodeResources(name="a", cpus=4),
        NodeResources(name="b", cpus=8, gpus=2),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "5", "{name: a}", "- a", "- {name: a}", "- {name: a, cpus: x}", "- [", "- {cpu: 3}"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^--nodes: .*nodes\.yaml") as caught:
        read_nodes(written(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_wrong_with_a_node_is_said_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nodes\.yaml: 1\.cpus: Field required"):
        read_nodes(written(tmp_path, "- {name: a, cpus: 4}\n- {name: b, gpus: 4}\n"))


@pytest.mark.parametrize("cpus", ["-1", ".nan", ".inf"])
def test_a_node_of_impossible_size_is_refused(tmp_path: Path, cpus: str) -> None:
    with pytest.raises(InputError, match=r"^--nodes: "):
        read_nodes(written(tmp_path, f"- {{name: a, cpus: {cpus}}}"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--nodes: "):
        read_nodes(tmp_path / "none.yaml")


# workers that come and go


def test_as_many_workers_as_there_must_be_have_room_and_more_may_come() -> None:
    wanted = config(training={"workers": {"min": 1, "max": 4}, "batch_size": 24})
    found = plan(wanted, nodes(2.0))
    assert (len(found.workers), found.most_workers) == (1, 4)
    assert found.lines()[-1] == "  up to 4 workers where there is room"


# labels


def labelled(**labels: str) -> list[NodeResources]:
    """A node of 8 CPUs for each, and one without."""
    named = [NodeResources(name=n, cpus=8, labels={"role": v}) for n, v in labels.items()]
    return [NodeResources(name="plain", cpus=8), *named]


def test_servers_and_workers_go_to_nodes_with_their_labels() -> None:
    wanted = config(
        serving={"node_labels": {"role": "teacher"}},
        training={"node_labels": {"role": "trainer"}, "worker_cpus": 8.0},
    )
    found = plan(wanted, labelled(a="trainer", b="teacher"))
    assert seats_by_node(found) == {"b": 2}
    assert found.server_labels == {"role": "teacher"}


@pytest.mark.parametrize("section", ["serving", "training"])
def test_labels_that_no_node_has_are_refused_with_those_that_there_are(section: str) -> None:
    wanted = config(**{section: {"node_labels": {"role": "teacher"}}})
    error = refusal(wanted, labelled(a="trainer"))
    assert error.key == f"{section}.node_labels"
    assert error.what == "no node has role=teacher; there are role=trainer"


def test_nodes_with_the_labels_may_be_waited_for() -> None:
    wanted = config(serving={"node_labels": {"role": "x"}, "wait_for_nodes": True})
    assert {seat.node for seat in plan(wanted, labelled(a="y")).seats} == {"a node to come"}


def test_workers_that_have_no_room_on_their_nodes_are_refused() -> None:
    where = {"node_labels": {"role": "t"}, "workers": 2, "worker_cpus": 5.0, "batch_size": 8}
    assert refusal(config(training=where), labelled(a="t")).key == "training.workers"
