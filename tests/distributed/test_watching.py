"""When the driver has the workers stop: a real board, and what a cluster says of its nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray._private import state as ray_state

from dfka_dist import watching
from dfka_dist.config import TrainingSpec
from dfka_dist.errors import RunFailed
from dfka_dist.notices import Failure, Meeting, NoticeBoard, Seat
from dfka_dist.watching import Watch
from distributed.conftest import Nodes

DRAINED = "a node that the cluster takes away"


@pytest.fixture
def board(cluster: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[ray.actor.ActorHandle]:
    """Of a run whose cluster drains a node."""
    monkeypatch.setattr(ray_state.state, "get_draining_nodes", lambda: {DRAINED: 0})
    board = ray.remote(NoticeBoard).options(num_cpus=0).remote()
    yield board
    ray.kill(board)


def is_stopped(
    board: ray.actor.ActorHandle,
    *meetings: Meeting,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Whether workers that met are told to stop, by a driver that looks once."""
    for meeting in meetings:
        ray.get(board.meet.remote(meeting))
    watch = Watch(board, ray.put(None), stopping, TrainingSpec())
    with pytest.raises(RunFailed, match="ended without a result"):
        watch.to_the_end([].append, [].append)
    stops: bool = ray.get(board.stops.remote())
    return stops


def on(*nodes: str, keeps: bool = True) -> Meeting:
    return Meeting(tuple(Seat(node, "10.0.0.1") for node in nodes), keeps)


def test_a_workers_node_that_is_drained_stops_the_run(board: ray.actor.ActorHandle) -> None:
    assert is_stopped(board, on("here", DRAINED))


def test_the_drivers_own_node_that_is_drained_stops_the_run(
    board: ray.actor.ActorHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {ray.get_runtime_context().get_node_id(): 0}
    monkeypatch.setattr(ray_state.state, "get_draining_nodes", lambda: own)
    assert is_stopped(board, on("here"))


def test_a_drained_node_that_workers_have_left_does_not_stop_the_run(
    board: ray.actor.ActorHandle,
) -> None:
    assert not is_stopped(board, on("here", DRAINED), on("here", "there"))


def test_a_drained_node_does_not_stop_a_run_that_keeps_no_checkpoints(
    board: ray.actor.ActorHandle,
) -> None:
    assert not is_stopped(board, on("here", DRAINED, keeps=False))


def test_a_run_that_keeps_no_checkpoints_stops_when_the_user_says_so(
    board: ray.actor.ActorHandle,
) -> None:
    assert is_stopped(board, on("here", keeps=False), stopping=lambda: True)


@pytest.mark.parametrize(
    ("in_vain", "said"),
    [
        ([0, 2], "worker 0 on 10.0.0.1, worker 2 on 10.0.0.1 waited at step 7 .* for worker 1 on"),
        ([0, 1, 2], "for others that waited too: look at the network"),
    ],
)
def test_who_was_late_is_named(board: ray.actor.ActorHandle, in_vain: list[int], said: str) -> None:
    ray.get(board.meet.remote(on("a", "b", "c")))
    for number, rank in enumerate(in_vain):  # those behind the first are thrown out by its end
        assert ray.get(board.fail.remote(Failure(rank, 7, waited=number == 0, story="...")))
    watch = Watch(board, ray.put(None), lambda: False, TrainingSpec())
    with pytest.raises(RunFailed, match=said):
        watch.to_the_end([].append, [].append)


def test_a_worker_that_fails_alone_is_to_be_started_again(board: ray.actor.ActorHandle) -> None:
    assert not ray.get(board.fail.remote(Failure(0, 7, waited=False, story="closed by peer")))


def test_workers_that_are_there_and_give_no_sign_are_told_of(
    board: ray.actor.ActorHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "QUIET", 1.0)
    ray.get(board.stand.remote(1, stands=True, controller="any"))

    @ray.remote(num_cpus=0)
    def last(seconds: float) -> None:
        time.sleep(seconds)

    warnings: list[str] = []
    training = TrainingSpec(timeout=1.0)
    watch = Watch(board, last.remote(2.5), lambda: False, training)
    with pytest.raises(RunFailed, match="ended without a result"):
        watch.to_the_end([].append, warnings.append)
    assert warnings and all("no worker has come to another step for" in w for w in warnings)


def test_workers_that_give_no_sign_for_too_long_end_the_run(board: ray.actor.ActorHandle) -> None:
    """The only one, say, whose device hangs."""
    ray.get(board.stand.remote(1, stands=True, controller="any"))

    @ray.remote(num_cpus=0)
    def hang() -> None:
        time.sleep(30)

    watch = Watch(board, hang.remote(), lambda: False, TrainingSpec(quiet_timeout=1.0))
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"for 1 s; --resume goes on, .*training\.quiet_timeout"):
        watch.to_the_end([].append, [].append)
    assert time.monotonic() - began < 10


def test_a_worker_that_asks_whether_to_stop_is_a_sign() -> None:
    board = NoticeBoard()
    time.sleep(0.2)
    board.stops()
    assert board.collect().quiet < 0.1


@pytest.mark.parametrize(
    ("told", "alone"), [([], True), ([False, True], False), ([False, True, False], True)]
)
def test_the_board_knows_whether_workers_are_there(told: list[bool], alone: bool) -> None:
    board = NoticeBoard()
    for turn, stands in enumerate(told, start=1):
        board.stand(turn, stands=stands, controller="any")
    assert (board.collect().alone is not None) == alone


def test_an_old_word_of_workers_that_arrives_late_is_passed_over() -> None:
    board = NoticeBoard()
    board.stand(2, stands=True, controller="any")
    board.stand(1, stands=False, controller="any")
    assert board.collect().alone is None
