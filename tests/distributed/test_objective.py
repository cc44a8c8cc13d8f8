"""The generator's whole objective and the student's lesson, against the same worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfka_dist import losses
from dfka_dist.config import LossWeights, RunConfig, TeacherSpec
from dfka_dist.losses import LossReport
from dfka_dist.models.filters import Filtered
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.dual import Lesson
from dfka_dist.training.memory import Labelled
from dfka_dist.training.panel import Cotangents, Panel
from dfka_dist.training.workshop import Workshop
from distributed.custom_teachers import without_batch_norm
from distributed.test_engines import UncutTeacher

pytestmark = pytest.mark.usefixtures("process_group")

BATCH = 8
NONE = dict.fromkeys(LossWeights.model_fields, 0.0)
MakeTeacher = Callable[..., TeacherSpec]


@dataclass(frozen=True)
class Judged:
    """One batch of a new generator, and what its objective makes of it."""

    panel: Panel
    images: Tensor
    asked_for: Tensor
    features: list[Filtered]
    student: TargetNet
    labelled: Labelled
    report: LossReport
    gradient: Tensor
    """Of the weighted sum, with respect to the images, on all ways."""
    of_groups: tuple[list[Tensor], list[Tensor]]
    """Forms and gates of the groups' features, and the gradients of the weighted sum there."""


Judge = Callable[..., Judged]


@pytest.fixture(scope="module")
def judge(
    make_config: Callable[..., RunConfig], load_teacher: Callable[[TeacherSpec], Teacher]
) -> Judge:
    """Let an objective judge one batch: `judge(specs, one_hot=1.0, ...)`, other weights 0."""

    def judge(
        specs: Sequence[TeacherSpec],
        sampled: bool = False,
        micro_batch: int | None = None,
        labels: Sequence[str] | None = None,
        **weights: float,
    ) -> Judged:
        config = make_config(
            specs,
            target={"arguments": {"widths": [4, 6, 8]}, "labels": labels or "all"},
            generator={"latent": 6},
            losses=NONE | weights,
            training={
                "batch_size": BATCH,
                "sampled_labels": sampled,
                "precision": "fp32",
                "micro_batch": micro_batch,
            },
        )
        teachers = LocalTeachers({spec.name: load_teacher(spec) for spec in specs})
        workshop = Workshop(config, teachers, [].append, torch.device("cpu"))
        engine = workshop.generator_engine()
        student = workshop.new_target(workshop.branching.design()).eval()
        synthesis = workshop.synthesis(engine, config.losses)
        drawn = workshop.draw("joint", 0)
        batch = synthesis.ask(drawn)
        heard = synthesis.hear(batch, student, config.losses)
        found = synthesis.criticise(batch, heard, config.losses)
        gradient = torch.zeros_like(batch.stack.images)
        for asked, back in zip(batch.image, found.of_image, strict=True):
            rows = torch.arange(BATCH) if asked.rows is None else asked.rows
            for own in back.result().values():
                gradient = gradient.index_add(0, rows, own.inputs)
        if found.image_gradient is not None:
            gradient = gradient + found.image_gradient
        collected = Cotangents()
        features = [as_leaves(feature) for feature in batch.stack.features]
        for feature, group, pulled in zip(features, batch.groups, found.of_groups, strict=False):
            for asked, back in zip(group, pulled, strict=True):
                collected.add_feature(feature, asked, back.result())
        engine.destroy()
        return Judged(
            workshop.panel,
            batch.stack.images.detach(),
            drawn.asked_for,
            features,
            student,
            heard.labelled,
            found.report,
            gradient,
            collected.pairs(),
        )

    return judge


def as_leaves(feature: Filtered) -> Filtered:
    """The same numbers, behind which there is no network."""
    adapted, gates = (
        {name: part.detach().requires_grad_() for name, part in parts.items()}
        for parts in (feature.adapted, feature.gates)
    )
    return Filtered(feature.feature.detach().requires_grad_(), gates=gates, adapted=adapted)


# one softmax teacher and no group term: DAFL


@pytest.fixture(scope="module")
def softmax(make_teacher: MakeTeacher) -> TeacherSpec:
    return make_teacher("only", "abc", task="single_label")


DAFL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # cross-entropy to the largest logit
    "one_hot": lambda logits, _: functional.cross_entropy(logits, logits.argmax(1)),
    # minus the mean size of the last features
    "activation": lambda _, features: -features.abs().mean(),
    # the mean prediction p of the batch, sum of p ln p
    "entropy": lambda logits, _: (
        logits.softmax(1).mean(0) * logits.softmax(1).mean(0).log()
    ).sum(),
}


@pytest.mark.parametrize(
    "weights",
    [*({term: 1.0} for term in DAFL), {"one_hot": 1.0, "activation": 0.1, "entropy": 5.0}],
    ids=str,
)
def test_one_softmax_teacher_and_no_group_are_dafl(
    judge: Judge, softmax: TeacherSpec, weights: dict[str, float]
) -> None:
    judged = judge([softmax], **weights)
    images = judged.images.clone().requires_grad_()
    said = UncutTeacher(softmax)(images)
    terms = [weight * DAFL[name](*said) for name, weight in weights.items()]
    by_hand = torch.stack(terms).sum()
    (gradient,) = torch.autograd.grad(by_hand, images)
    assert judged.report.total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert (judged.gradient - gradient).norm() / gradient.norm() <= 1e-5


def test_with_one_group_the_group_term_adds_nothing_to_dafl(
    judge: Judge, make_teacher: MakeTeacher
) -> None:
    """B = 1: the only group makes the image, whose features are no feature of eq. 11."""
    shallow = make_teacher("shallow", "abc", task="single_label", widths=(4,))
    weights = {"one_hot": 1.0, "activation": 0.1, "entropy": 5.0}
    judged = judge([shallow], group=1.0, **weights)
    images = judged.images.clone().requires_grad_()
    said = UncutTeacher(shallow)(images)
    by_hand = torch.stack([weight * DAFL[name](*said) for name, weight in weights.items()]).sum()
    (gradient,) = torch.autograd.grad(by_hand, images)
    assert judged.features == []
    assert judged.report.total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert (judged.gradient - gradient).norm() / gradient.norm() <= 1e-5


def test_a_teacher_without_batch_norm_leaves_the_statistics_to_the_others(
    judge: Judge, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    teachers = [
        make_teacher("first", "abc"),
        without_batch_norm(make_teacher("bare", "de"), tmp_path),
    ]
    judged = judge(teachers, batch_norm=1.0)
    known = UncutTeacher(teachers[0])
    images = judged.images.clone().requires_grad_()
    known(images)
    by_hand = known.statistics()
    (gradient,) = torch.autograd.grad(by_hand, images)
    assert judged.report.total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert (judged.gradient - gradient).norm() / gradient.norm() <= 1e-5


def test_teachers_all_without_batch_norm_have_no_statistics_to_match(
    judge: Judge, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    bare = without_batch_norm(make_teacher("bare", "de"), tmp_path)
    judged, other = (judge([bare], one_hot=1.0, batch_norm=weight) for weight in (1.0, 0.0))
    assert judged.report.terms["batch_norm"] == 0
    assert torch.equal(judged.report.total, other.report.total)
    assert torch.equal(judged.gradient, other.gradient)


# multi-label teachers that know unequally many labels: every label counts the same


@pytest.fixture(scope="module")
def unequal(make_teacher: MakeTeacher) -> list[TeacherSpec]:
    return [make_teacher("many", "abc"), make_teacher("single", "d")]


JOINED: dict[str, Callable[[Tensor], Tensor]] = {
    # cross-entropy to its own decision, of every label of every image
    "one_hot": lambda y: -torch.where(y >= 0.5, y, 1 - y).log().mean(),
    # the mean prediction p of the batch, mean of p ln p
    "entropy": lambda y: (y.mean(0) * y.mean(0).log()).mean(),
    "discrete": lambda y: y.abs().mean(),
}
"""Of the probabilities (N, C) of all labels of all teachers."""


@pytest.mark.parametrize("term", JOINED)
def test_a_term_about_labels_is_that_of_the_teachers_joined_answers(
    judge: Judge, unequal: list[TeacherSpec], term: str
) -> None:
    """Eq. 10, in value and in the gradient of every image."""
    judged = judge(unequal, **{term: 1.0})
    images = judged.images.clone().requires_grad_()
    y = torch.cat([UncutTeacher(spec)(images)[0] for spec in unequal], dim=1).sigmoid()
    by_hand = JOINED[term](y)
    (gradient,) = torch.autograd.grad(by_hand, images)
    assert judged.report.total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert (judged.gradient - gradient).norm() / gradient.norm() <= 1e-5


def test_groups_follow_the_teachers_joined_answers(
    judge: Judge, unequal: list[TeacherSpec]
) -> None:
    """Eq. 10 and 11: groups 1 and 2 lie at depths 2 and 1 of both teachers."""
    judged = judge(unequal, group=1.0)
    teachers = {spec.name: UncutTeacher(spec) for spec in unequal}
    aim = torch.cat([own(judged.images)[0] for own in teachers.values()], dim=1).sigmoid()
    terms = []
    for feature, depth in zip(judged.features, (2, 1), strict=True):
        gated = {n: feature.form(n) * feature.gates[n][:, :, None, None] for n in teachers}
        said = [own(gated[name], depth)[0] for name, own in teachers.items()]
        y = torch.cat(said, dim=1).sigmoid()
        terms.append(-(aim * y.log() + (1 - aim) * (1 - y).log()).mean())
    of_groups_is(judged, torch.stack(terms).mean())


def of_groups_is(judged: Judged, by_hand: Tensor) -> None:
    """The group term, and what it sends into the features of the generator."""
    assert judged.report.terms["group"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    outputs, gradients = judged.of_groups
    assert outputs
    expected = torch.autograd.grad(by_hand, outputs)
    for gradient, own in zip(gradients, expected, strict=True):
        assert own.norm() > 0 and (gradient - own).norm() / own.norm() <= 1e-5


# two teachers of different tasks and labels: every image has its home


@pytest.fixture(scope="module")
def strangers(make_teacher: MakeTeacher) -> list[TeacherSpec]:
    """The second shares a label, has a block less, and eats other pictures."""
    return [
        make_teacher("one", "abc", task="single_label"),
        make_teacher("two", "dbe", widths=(5, 6), channels=3, size=12),
    ]


@dataclass(frozen=True)
class AtHome:
    """Images that are at home with a teacher."""

    teacher: UncutTeacher
    said: Tensor
    features: Tensor
    goal: Tensor
    """The label sets that were asked for."""
    student: Tensor
    """What the student says."""

    @property
    def mean(self) -> Tensor:
        return losses.probabilities(self.said, self.teacher.task).mean(0)


HOME_TERMS: dict[str, Callable[[AtHome], Tensor]] = {
    "one_hot": lambda own: losses.one_hot(own.said, own.goal, own.teacher.task),
    "activation": lambda own: losses.activation(own.features),
    "entropy": lambda own: losses.entropy(own.mean, own.teacher.task),
    "discrete": lambda own: losses.discrete(own.said, own.teacher.task),
    "batch_norm": lambda own: own.teacher.statistics(),
    "adversarial": lambda own: losses.adversarial(own.student, own.said),
}


@pytest.fixture(scope="module", params=HOME_TERMS)
def term(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_term_of_a_teacher_looks_only_at_images_that_are_at_home_with_it(
    judge: Judge, strangers: list[TeacherSpec], term: str
) -> None:
    """The mean over teachers of each one's term, in value and in the gradient of every image."""
    judged = judge(strangers, sampled=True, **{term: 1.0})
    images, labels = judged.images.clone().requires_grad_(), ["a", "b", "c", "d", "e"]
    terms = []
    for home, spec in enumerate(strangers):
        own = judged.panel.homes == home
        goal = judged.asked_for[own][:, [labels.index(label) for label in spec.labels]]
        teacher = UncutTeacher(spec)
        student = judged.student(images[own])[spec.name]
        terms.append(HOME_TERMS[term](AtHome(teacher, *teacher(images[own]), goal, student)))
    by_hand = torch.stack(terms).mean()
    (gradient,) = torch.autograd.grad(by_hand, images)
    assert judged.report.total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert (judged.gradient - gradient).norm() / gradient.norm() <= 1e-5


def test_labels_that_are_asked_for_are_the_homes_own(
    judge: Judge, strangers: list[TeacherSpec]
) -> None:
    judged = judge(strangers, sampled=True, one_hot=1.0)
    known = torch.tensor([[1.0, 1, 1, 0, 0], [0, 1, 0, 1, 1]])[judged.panel.homes]
    assert (judged.asked_for.sum(1) == 1).all()
    assert (judged.asked_for <= known).all()


def test_groups_follow_their_images_at_home_alone(
    judge: Judge, strangers: list[TeacherSpec]
) -> None:
    """Eq. 11: groups 1 and 2 lie at depths 2 and 1 of the first teacher, both at 1 of the other."""
    judged = judge(strangers, sampled=True, group=1.0)
    entries = {"one": [2, 1], "two": [1, 1]}
    terms = []
    for home, spec in enumerate(strangers):
        own, teacher = judged.panel.homes == home, UncutTeacher(spec)
        aim, _ = teacher(judged.images[own])
        for feature, depth in zip(judged.features, entries[spec.name], strict=True):
            gated = feature.form(spec.name) * feature.gates[spec.name][:, :, None, None]
            terms.append(losses.group(teacher(gated[own], depth)[0], aim, spec.task))
    of_groups_is(judged, torch.stack(terms).mean())


# the student's lesson


def test_a_student_hears_of_an_image_from_its_home_alone(
    judge: Judge, strangers: list[TeacherSpec]
) -> None:
    judged = judge(strangers, sampled=True, one_hot=1.0)
    weights = LossWeights(distill={"two": 0.5}, logits=2.0)
    lesson = Lesson(judged.labelled, judged.panel, weights)
    random = torch.Generator().manual_seed(0)
    said = {
        spec.name: torch.randn(BATCH, 3, generator=random).requires_grad_() for spec in strangers
    }
    report = lesson.report(lesson.concerned(said))
    report.total.backward()  # type: ignore[no-untyped-call]
    expected = torch.tensor(0.0)
    for home, spec in enumerate(strangers):
        own = judged.panel.homes == home
        truth = UncutTeacher(spec)(judged.images[own])[0]
        distances = (said[spec.name][own] - truth).abs().mean()
        part = losses.distill(said[spec.name][own], truth, spec.task)
        expected = expected + weights.lambda_of(spec.name) * (part + 2 * distances)
        gradient = said[spec.name].grad
        assert gradient is not None
        assert torch.equal(gradient.abs().sum(1) > 0, own)
    assert report.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_label_of_a_softmax_teacher_is_learned_beside_those_that_nobody_wants(
    judge: Judge, strangers: list[TeacherSpec]
) -> None:
    """Alone it would always have the probability one, and there would be nothing to learn."""
    spec = next(spec for spec in strangers if spec.task == "single_label")
    judged = judge([spec], labels=spec.labels[:1], one_hot=1.0)
    lesson = Lesson(judged.labelled, judged.panel, LossWeights(distill=1.0, logits=0.0))
    said = judged.student(judged.images)
    report = lesson.report(said)
    truth = UncutTeacher(spec)(judged.images)[0]
    expected = losses.distill(said[spec.name], truth, "single_label").item()
    assert report.total.item() == pytest.approx(expected, rel=1e-5) and expected > 0.1


@pytest.mark.parametrize("wanted", ["bd", "dac"])
def test_an_image_is_asked_for_labels_that_nobody_wants_too(
    judge: Judge, unequal: list[TeacherSpec], wanted: str
) -> None:
    """Or nothing would be known of what is none of those that are wanted."""
    judged = judge(unequal, sampled=True, labels=list(wanted), one_hot=1.0)
    labels = [label for spec in unequal for label in spec.labels]
    order = [*wanted, *(label for label in labels if label not in wanted)]
    aim = torch.stack([judged.asked_for[:, order.index(label)] for label in labels], dim=1)
    y = torch.cat([UncutTeacher(spec)(judged.images)[0] for spec in unequal], dim=1).sigmoid()
    expected = -torch.where(aim == 1, y, 1 - y).log().mean()
    assert judged.report.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (judged.asked_for[:, : len(wanted)].sum(1) == 0).any()


@pytest.mark.parametrize("distill", [{"one": 0.0}, {"one": 0.0, "two": 0.0}])
def test_a_teacher_of_weight_zero_teaches_nothing(
    judge: Judge, strangers: list[TeacherSpec], distill: dict[str, float]
) -> None:
    judged = judge(strangers, sampled=True, one_hot=1.0)
    lesson = Lesson(judged.labelled, judged.panel, LossWeights(distill=distill))
    said = {spec.name: torch.zeros(BATCH, 3, requires_grad=True) for spec in strangers}
    lesson.report(lesson.concerned(said)).total.backward()  # type: ignore[no-untyped-call]
    taught = {
        name for name, own in said.items() if own.grad is not None and own.grad.abs().sum() > 0
    }
    assert taught == {spec.name for spec in strangers} - set(distill)


# in parts


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_teachers_asked_in_parts_give_the_gradient_of_the_whole_batch(
    judge: Judge, make_teacher: MakeTeacher, rows: int
) -> None:
    """All terms that look at the teachers, means over the batch and sums of statistics too."""
    specs = [make_teacher("one", "ab"), make_teacher("two", "cd", widths=(5, 6))]
    weights = dict.fromkeys(("one_hot", "activation", "entropy", "discrete", "batch_norm"), 1.0)
    whole, parts = (judge(specs, micro_batch=own, **weights) for own in (None, rows))
    assert parts.report.total.item() == pytest.approx(whole.report.total.item(), rel=1e-6)
    assert (parts.gradient - whole.gradient).norm() / whole.gradient.norm() <= 1e-5
