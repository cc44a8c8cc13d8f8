"""In every step only the network whose turn it is changes, its buffers included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dfka_dist.config import TeacherSpec
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.altering import moved
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine
from dfka_dist.training.turns import listened_to, only_synthesizing
from distributed.game import BATCH, EVERY_TERM, JITTER, RATE, Game, draw, networks

State = dict[str, dict[str, Tensor]]
PARTS = ("generator", "trunk", "block", "tails", "teachers")


class Watched:
    """A game with one teacher's blocks in the target's tail, and what of it changes."""

    def __init__(
        self, specs: list[TeacherSpec], load: Callable[[TeacherSpec], Teacher], zero_stage: int
    ) -> None:
        self.loaded = {spec.name: load(spec) for spec in specs}
        self.teachers = LocalTeachers(self.loaded)
        self.new_networks = lambda: networks(specs, self.teachers, branch=2)
        self.game = Game(self.new_networks(), self.teachers, zero_stage=zero_stage)

    def state(self) -> State:
        chains = {name: teacher.chain.state_dict() for name, teacher in self.loaded.items()}
        return {
            "generator": self.game.synthesis.engine.state(),
            "trunk": self.game.dual.engine.state(),
            "block": self.game.block.engine.state(),
            "tails": copied(self.game.target.tails.state_dict()),
            "teachers": copied(
                {f"{n}.{k}": v for n, own in chains.items() for k, v in own.items()}
            ),
        }

    def changed_by(self, turn: Callable[[], object]) -> dict[str, set[str]]:
        """Per part that changed, the names of what changed in it."""
        before = self.state()
        turn()
        after = self.state()
        changed = {
            part: {name for name, old in before[part].items() if not after[part][name].equal(old)}
            for part in PARTS
        }
        return {part: names for part, names in changed.items() if names}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda stage: f"zero{stage}")
def watched(
    request: pytest.FixtureRequest,
    process_group: None,
    specs: dict[str, TeacherSpec],
    load_teacher: Callable[[TeacherSpec], Teacher],
) -> Iterator[Watched]:
    made = Watched([specs["first"], specs["second"]], load_teacher, request.param)
    yield made
    made.game.destroy()


def test_a_step_of_the_generator_changes_nothing_but_the_generator(watched: Watched) -> None:
    drawn = draw(watched.teachers, 0)
    changed = watched.changed_by(lambda: watched.game.generator_step(drawn))
    assert set(changed) == {"generator"}


def test_a_step_of_the_generator_moves_its_running_statistics(watched: Watched) -> None:
    drawn = draw(watched.teachers, 1)
    changed = watched.changed_by(lambda: watched.game.generator_step(drawn))
    statistics = {name for name in watched.state()["generator"] if "running" in name}
    assert statistics and statistics <= changed["generator"]


def test_a_step_of_the_dual_generator_changes_nothing_but_its_trunk(watched: Watched) -> None:
    labelled = watched.game.generator_step(draw(watched.teachers, 2)).labelled
    changed = watched.changed_by(lambda: watched.game.dual_step(labelled))
    assert set(changed) == {"trunk"}


def test_a_step_of_a_block_changes_nothing_but_that_block_and_its_filters(watched: Watched) -> None:
    drawn = draw(watched.teachers, 2)
    with only_synthesizing(watched.game.synthesis.engine.network):
        stack = watched.game.synthesis.engine.network(drawn.noise, drawn.asked_for)
    labelled = watched.game.panel.labelled(stack.images, watched.game.panel.homes).result()
    link = stack.features[-1].feature
    changed = watched.changed_by(lambda: watched.game.block_step(labelled, link))
    assert set(changed) == {"block"}
    assert {".".join(name.split(".")[:2]) for name in changed["block"]} == {
        "blocks.1",
        "adapter.1",
        "filters.first",
        "filters.second",
    }


def test_a_generator_out_of_turn_changes_nothing(watched: Watched) -> None:
    drawn = draw(watched.teachers, 3)

    def synthesize() -> None:
        with only_synthesizing(watched.game.synthesis.engine.network):
            watched.game.synthesis.engine.network(drawn.noise, drawn.asked_for)

    assert watched.changed_by(synthesize) == {}


def test_a_generator_out_of_turn_makes_the_images_that_it_makes_in_turn(watched: Watched) -> None:
    drawn = draw(watched.teachers, 4)._replace(moves=None)
    with only_synthesizing(watched.game.synthesis.engine.network):
        out_of_turn = watched.game.synthesis.engine.network(drawn.noise, drawn.asked_for).images
    in_turn = watched.game.generator_step(drawn).labelled.images
    assert out_of_turn.equal(in_turn)


def test_teachers_and_memory_are_shown_the_images_moved(watched: Watched) -> None:
    drawn = draw(watched.teachers, 6)
    assert drawn.moves is not None
    still = watched.game.generator_step(drawn._replace(moves=None), rate=0.0).labelled
    shown = watched.game.generator_step(drawn, rate=0.0).labelled
    wanted = watched.game.panel.labelled(moved(still.images, drawn.moves, JITTER), still.homes)
    torch.testing.assert_close(shown.images, wanted.result().images)
    torch.testing.assert_close(shown.logits, wanted.result().logits)


def test_listening_to_the_student_changes_nothing(watched: Watched) -> None:
    images = torch.rand(BATCH, 3, 16, 16, requires_grad=True)

    def listen() -> None:
        with listened_to(watched.game.target):
            answers = watched.game.target(images)
        torch.stack([answer.sum() for answer in answers.values()]).sum().backward()

    assert watched.changed_by(listen) == {}


def test_a_student_that_is_listened_to_judges_every_image_alone(watched: Watched) -> None:
    images = torch.rand(BATCH, 3, 16, 16)
    with torch.no_grad(), listened_to(watched.game.target):
        together = watched.game.target(images)["first"]
        alone = torch.cat([watched.game.target(image[None])["first"] for image in images])
    torch.testing.assert_close(together, alone)


def test_a_step_of_fine_tuning_does_not_change_the_teachers_whose_tails_are_tuned(
    watched: Watched,
) -> None:
    labelled = watched.game.generator_step(draw(watched.teachers, 5)).labelled
    target = watched.new_networks().target
    target.tails.requires_grad_(True)
    engine = Engine(target, micro_batch=BATCH, zero_stage=1, precision="fp32", rate=RATE)
    dual = Dual(engine=engine, target=target, panel=watched.game.panel, weights=EVERY_TERM)
    changed = watched.changed_by(lambda: dual.learn(labelled, RATE))
    engine.destroy()
    assert changed == {}
