"""Which images concern whom, and what comes back from those who were asked about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.filters import FilterBank, Filtered
from dfka_dist.models.sources import read_all_weights
from dfka_dist.teachers.interface import InputGradient, Question, Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import load_teachers
from dfka_dist.training.panel import Asked, Cotangents, Panel, answered, spread, taken

MakePanel = Callable[..., Panel]
NAMES = ["one", "two", "three"]
BATCH = 12
EVERYONES = torch.full((BATCH,), -1)


@pytest.fixture(scope="module")
def teachers(make_teacher: Callable[..., TeacherSpec]) -> LocalTeachers:
    """Three that share label b; the third has features of another shape."""
    single: dict[str, Any] = {"task": "single_label"}
    specs = [
        make_teacher("one", ["a", "b"], **single),
        make_teacher("two", ["b", "c", "d"], widths=(4, 4, 8), **single),
        make_teacher("three", ["e", "b"], widths=(5, 7, 9)),
    ]
    return LocalTeachers(load_teachers(specs, read_all_weights(specs)))


@pytest.fixture(scope="module")
def make_panel(teachers: LocalTeachers, make_config: Callable[..., RunConfig]) -> MakePanel:
    """A factory of panels in which images have homes: `make_panel(columns, recipe=...)`."""

    def make(columns: range = range(BATCH), labels: Any = "all", **training: Any) -> Panel:
        specs = [own.spec for own in teachers.descriptions.values()]
        config = make_config(
            specs, target={"labels": labels}, training={"batch_size": BATCH} | training
        )
        return Panel(config, teachers, columns, "fp32")

    return make


@pytest.fixture(scope="module")
def panel(make_panel: MakePanel) -> Panel:
    return make_panel()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def filtered(teachers: LocalTeachers) -> Filtered:
    """A feature behind the first block, of which the third teacher has a form of its own."""
    wanted = {name: own.shapes[1] for name, own in teachers.descriptions.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found: Filtered = FilterBank((4, 8, 8), wanted)(torch.rand(BATCH, 4, 8, 8))
    return found


def said(panel: Panel, inputs: Tensor, name: str) -> Tensor:
    """What one teacher says of all images."""
    return answered(panel.teachers.forward(Question(inputs, (name,))).result()[name])


# homes


def test_pairs_of_images_are_at_home_with_the_teachers_in_turn(panel: Panel) -> None:
    assert panel.homes.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, BATCH))
def test_homes_do_not_depend_on_the_number_of_workers(make_panel: MakePanel, at: int) -> None:
    shares = [make_panel(columns).homes for columns in (range(at), range(at, BATCH))]
    assert torch.equal(torch.cat(shares), make_panel().homes)


def test_every_image_concerns_its_home_and_nobody_else(panel: Panel) -> None:
    concerned = [panel.rows(name, panel.homes) for name in NAMES]
    rows = torch.cat([own for own in concerned if own is not None])
    assert [len(own) for own in concerned if own is not None] == [4, 4, 4]
    assert rows.sort().values.tolist() == list(range(BATCH))


def test_images_without_a_home_concern_everybody(panel: Panel) -> None:
    assert [panel.rows(name, EVERYONES) for name in NAMES] == [None, None, None]


def test_images_that_are_given_have_no_home(make_panel: MakePanel) -> None:
    assert torch.equal(make_panel(recipe="distill", images="noise").homes, EVERYONES)


def test_labels_are_asked_of_images_whose_home_knows_them(panel: Panel) -> None:
    assert panel.pools(["e", "b", "d", "c", "a"], 5) == [[1, 4], [1, 2, 3], [0, 1]]


def test_half_of_the_images_at_least_are_asked_for_what_is_wanted(panel: Panel) -> None:
    """The homes know a and b, b to d, and b and e."""
    assert panel.pools(["b", "e", "d", "c", "a"], 1) == [[0, 4], [0, 2, 0, 3], [0, 1]]
    assert panel.pools(["b", "d", "e", "c", "a"], 2) == [[0, 4], [0, 1, 3], [0, 2]]


def test_only_wanted_labels_are_kept(make_panel: MakePanel) -> None:
    voices = make_panel(labels=["e", "c", "b"]).voices
    assert {name: voice.kept for name, voice in voices.items()} == {
        "one": (1,),
        "two": (0, 1),
        "three": (0, 1),
    }


def test_a_single_label_teacher_is_heard_with_all_its_labels(make_panel: MakePanel) -> None:
    logits = torch.arange(6.0).view(2, 3)
    assert torch.equal(make_panel(labels=["e", "c"]).voices["two"].heard(logits), logits)


def test_a_multi_label_teacher_is_heard_with_those_that_are_wanted(make_panel: MakePanel) -> None:
    logits = torch.tensor([[1.0, 2.0]])
    assert make_panel(labels=["b", "a"]).voices["three"].heard(logits).tolist() == [[2.0]]


# what is asked


def test_images_are_labelled_by_their_home_alone(panel: Panel, images: Tensor) -> None:
    labelled = panel.labelled(images, panel.homes).result()
    for name in NAMES:
        rows = panel.rows(name, panel.homes)
        expected = spread(taken(said(panel, images, name), rows), rows, BATCH)
        torch.testing.assert_close(labelled.logits[name], expected)


def test_images_without_a_home_are_labelled_by_everybody(panel: Panel, images: Tensor) -> None:
    labelled = panel.labelled(images, EVERYONES).result()
    assert list(labelled.logits) == NAMES
    assert all(torch.equal(labelled.logits[n], said(panel, images, n)) for n in NAMES)


def test_a_feature_travels_once_to_all_who_have_no_form_of_their_own(
    panel: Panel, filtered: Filtered
) -> None:
    asked = panel.about_features(filtered, EVERYONES, dict.fromkeys(NAMES, 1), Wanted())
    assert {each.question.teachers for each in asked} == {("one", "two"), ("three",)}


def test_teachers_that_go_on_at_other_depths_are_asked_apart(
    panel: Panel, filtered: Filtered
) -> None:
    alike = Filtered(filtered.feature, {}, {n: filtered.gates[n] for n in ("one", "two")})
    asked = panel.about_features(alike, EVERYONES, {"one": 1, "two": 2}, Wanted())
    depths = {each.question.teachers: each.question.depth for each in asked}
    assert depths == {("one",): 1, ("two",): 2}


@pytest.mark.parametrize("at_home", [False, True])
def test_tails_say_of_a_feature_what_they_say_of_its_gated_form(
    panel: Panel, filtered: Filtered, at_home: bool
) -> None:
    homes = panel.homes if at_home else EVERYONES
    entries = dict.fromkeys(NAMES, 1)
    asked = panel.about_features(filtered, homes, entries, Wanted())
    for name, (each, own) in _by_teacher(asked).items():
        gated = filtered.form(name) * filtered.gates[name][:, :, None, None]
        whole = panel.teachers.forward(Question(gated.detach(), (name,), depth=1)).result()[name]
        torch.testing.assert_close(own, taken(answered(whole), each.rows))


def test_gradients_of_a_home_are_zero_at_images_of_others(panel: Panel, filtered: Filtered) -> None:
    asked = panel.about_features(
        filtered, panel.homes, dict.fromkeys(NAMES, 1), Wanted(gradient=True)
    )
    for each in asked:
        collected = Cotangents()
        answers = each.answer.result()
        collected.add_feature(
            filtered, each, panel.teachers.pullback(each.question, answers).result()
        )
        (name,) = each.question.teachers
        for gradient in collected.pairs()[1]:
            touched = gradient.flatten(1).abs().sum(1).nonzero()[:, 0]
            assert torch.equal(touched, panel.rows(name, panel.homes))


def _by_teacher(asked: list[Asked]) -> dict[str, tuple[Asked, Tensor]]:
    return {
        name: (each, answered(answer))
        for each in asked
        for name, answer in each.answer.result().items()
    }


# gradients


def test_cotangents_of_one_output_are_added_up() -> None:
    output, collected = torch.zeros(4, 2), Cotangents()
    collected.add(output, torch.ones(4, 2))
    collected.add(output, torch.full((2, 2), 3.0), rows=torch.tensor([0, 2]))
    (only,), (gradient,) = collected.pairs()
    assert only is output and gradient[:, 0].tolist() == [4, 1, 4, 1]


def test_a_feature_collects_the_gradients_of_all_who_saw_it_and_of_each_gate(
    filtered: Filtered,
) -> None:
    collected = Cotangents()
    question = Question(filtered.feature, ("one", "two"), depth=1)
    got = {
        name: InputGradient(torch.full_like(filtered.feature, by), filtered.gates[name] * by)
        for name, by in (("one", 1.0), ("two", 2.0))
    }
    collected.add_feature(filtered, Asked(question, None, None), got)  # type: ignore[arg-type]
    outputs, gradients = collected.pairs()
    found = {id(output): gradient for output, gradient in zip(outputs, gradients, strict=True)}
    assert found[id(filtered.feature)].unique().tolist() == [3.0]
    assert torch.equal(found[id(filtered.gates["two"])], 2 * filtered.gates["two"])
