"""The images on which networks are compared without data, and what they are compared by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Panel
from dfka_dist.training.probe import Heard, ProbeSet, packed

MakeTeacher = Callable[..., TeacherSpec]
LoadTeacher = Callable[[TeacherSpec], Teacher]
MakePanel = Callable[..., Panel]
LABELS = ["a", "b", "c"]


def pictures(count: int, seed: int) -> Tensor:
    """Noise, brighter from picture to picture."""
    noise = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.1, 1, count)[:, None, None, None]


@pytest.fixture(scope="module")
def teacher(make_teacher: MakeTeacher, load_teacher: LoadTeacher) -> Teacher:
    return load_teacher(make_teacher("one", LABELS))


@pytest.fixture(scope="module")
def make_panel(make_config: Callable[..., RunConfig]) -> MakePanel:
    """A factory of panels of loaded teachers."""

    def make(*teachers: Teacher) -> Panel:
        config = make_config([teacher.spec for teacher in teachers])
        own = LocalTeachers({teacher.spec.name: teacher for teacher in teachers})
        return Panel(config, own, range(8), "fp32")

    return make


@pytest.fixture
def probe(teacher: Teacher, make_panel: MakePanel) -> ProbeSet:
    panel = make_panel(teacher)
    made = ProbeSet(panel)
    for seed in range(3):
        made.add(pictures(8, seed), panel.homes_of(range(8)))
    return made


def looked_at(probe: ProbeSet) -> tuple[Tensor, Tensor]:
    """All images and homes together."""
    images, homes = zip(*probe.looks(), strict=True)
    return torch.cat(images), torch.cat(homes)


def test_a_probe_set_begins_with_every_generators_own_images(probe: ProbeSet) -> None:
    plain = torch.cat([pictures(8, seed) for seed in range(3)])
    assert torch.equal(looked_at(probe)[0][: len(plain)], plain)


def test_a_probe_set_holds_more_than_the_generators_made(probe: ProbeSet) -> None:
    images = {image.numpy().tobytes() for image in looked_at(probe)[0]}
    assert len(images) == 3 * 3 * 8


def test_images_of_a_probe_set_lie_between_zero_and_one(probe: ProbeSet) -> None:
    images, _ = looked_at(probe)
    assert 0 <= images.min() < images.max() <= 1


def test_a_probe_set_is_the_same_again(probe: ProbeSet) -> None:
    assert torch.equal(looked_at(probe)[0], looked_at(probe)[0])


def test_a_judgement_has_agreement_and_a_coverage_for_every_label(
    probe: ProbeSet, teacher: Teacher, make_copy: Callable[..., TargetNet]
) -> None:
    judged = probe.judge(make_copy(teacher))
    assert 0 <= judged["agreement"] <= 1
    assert list(judged["coverage"]) == LABELS


def test_a_target_that_is_its_teacher_all_over_agrees_wholly(
    probe: ProbeSet, teacher: Teacher, make_copy: Callable[..., TargetNet]
) -> None:
    assert probe.judge(make_copy(teacher))["agreement"] == 1.0


@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["one teacher", "two teachers"])
def test_of_one_label_a_target_that_denies_it_agrees_less(
    names: list[str],
    make_teacher: MakeTeacher,
    load_teacher: LoadTeacher,
    make_panel: MakePanel,
    make_copy: Callable[..., TargetNet],
) -> None:
    teachers = [load_teacher(make_teacher(name, ["a"], seed=5)) for name in names]
    probe, good, bad = ProbeSet(make_panel(*teachers)), make_copy(*teachers), make_copy(*teachers)
    probe.add(pictures(32, 0), torch.full((32,), -1))
    with torch.no_grad():
        for tail in bad.tails.values():
            for parameter in tail.parameters():
                parameter.neg_()
    assert (probe.judge(good)["agreement"], probe.judge(bad)["agreement"]) == (1, 0)


def test_one_that_was_given_judges_as_the_one_that_asked(
    probe: ProbeSet, teacher: Teacher, make_panel: MakePanel, make_copy: Callable[..., TargetNet]
) -> None:
    target, given = make_copy(teacher), ProbeSet(make_panel(teacher))
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(-0.5)
    given.give(probe.heard())
    own = probe.judge(target)["agreement"]
    assert own < 0.99
    assert given.judge(target)["agreement"] == pytest.approx(own, abs=2e-3)  # images of 8 bits


def test_one_that_was_given_asks_nobody(
    probe: ProbeSet, teacher: Teacher, make_panel: MakePanel, make_copy: Callable[..., TargetNet]
) -> None:
    heard, given = probe.heard(), ProbeSet(make_panel(teacher))
    given.give(Heard(heard.images, heard.homes, {"one": 1 - heard.said["one"]}))
    assert given.judge(make_copy(teacher))["agreement"] < 1


def test_a_share_has_as_many_of_every_generator(probe: ProbeSet) -> None:
    images, homes = probe.share(7)
    assert (len(images), len(homes), images.dtype) == (6, 6, torch.uint8)
    assert torch.equal(images, torch.cat([packed(pictures(8, seed)[:2]) for seed in range(3)]))


def test_one_that_was_given_shares_what_it_was_given(
    probe: ProbeSet, teacher: Teacher, make_panel: MakePanel
) -> None:
    given = ProbeSet(make_panel(teacher))
    given.give(probe.heard())
    assert torch.equal(given.share(4)[0], packed(pictures(8, 0)[:4]))


# homes


@pytest.fixture(scope="module")
def two(make_teacher: MakeTeacher, load_teacher: LoadTeacher) -> list[Teacher]:
    """Single-label teachers of different labels, one of which both know, with the same blocks."""
    labels = {"one": LABELS, "two": ["x", "y", "b"]}
    single = {"task": "single_label", "seed": 5}
    specs = [make_teacher(name, own, **single) for name, own in labels.items()]
    for spec, factor in zip(specs, (1, -60), strict=True):  # only the second is sure, of b
        assert spec.weights is not None
        state = load_file(spec.weights)
        state["classifier.weight"] *= factor
        save_file(state, spec.weights)
    return [load_teacher(spec) for spec in specs]


@pytest.fixture
def at_home(two: list[Teacher], make_panel: MakePanel) -> ProbeSet:
    panel = make_panel(*two)
    made = ProbeSet(panel)
    made.add(pictures(32, 0), panel.homes_of(range(32)))
    return made


def test_only_images_of_one_home_are_mixed(two: list[Teacher], make_panel: MakePanel) -> None:
    """Those of one home are white, those of the other black: grey would be of both."""
    probe, homes = ProbeSet(make_panel(*two)), torch.arange(16) // 2 % 2
    probe.add(homes[:, None, None, None].expand(-1, 1, 16, 16).float(), homes)
    images, of = looked_at(probe)
    assert torch.equal(images[:, 0, 0, 0], of.float())


def test_a_target_that_is_its_teachers_all_over_agrees_wholly_whatever_the_homes(
    at_home: ProbeSet, two: list[Teacher], make_copy: Callable[..., TargetNet]
) -> None:
    assert at_home.judge(make_copy(*two))["agreement"] == 1.0


def test_labels_that_an_images_home_does_not_know_count_for_nothing(
    two: list[Teacher],
    make_panel: MakePanel,
    make_teacher: MakeTeacher,
    load_teacher: LoadTeacher,
    make_copy: Callable[..., TargetNet],
) -> None:
    """All images are at home with the first, and the second is sure that they are all x."""
    spec = make_teacher("loud", ["x", "y"], task="single_label")
    assert spec.weights is not None
    state = load_file(spec.weights)
    save_file(state | {"classifier.bias": torch.tensor([99.0, 0.0])}, spec.weights)
    probe = ProbeSet(make_panel(two[0], load_teacher(spec)))
    probe.add(pictures(32, 0), torch.zeros(32, dtype=torch.long))
    coverage = probe.judge(make_copy(two[0], load_teacher(spec)))["coverage"]
    assert coverage["x"]["share"] == 0


def test_of_an_archives_images_the_home_alone_is_heard(
    two: list[Teacher], make_panel: MakePanel, make_copy: Callable[..., TargetNet]
) -> None:
    """The second is sure enough of b; the archive has nothing of the first, who knows b too."""
    said = torch.tensor([0.4, 0.08, 0.52]).log().expand(16, 3)
    logits = {"one": torch.zeros(16, len(LABELS)), "two": said}
    probe = ProbeSet(make_panel(*two))
    probe.add_labelled(Labelled(pictures(16, 0), logits, torch.ones(16, dtype=torch.long)))
    coverage = probe.judge(make_copy(*two))["coverage"]
    assert (coverage["b"]["share"], coverage["x"]["share"]) == (1, 0)
