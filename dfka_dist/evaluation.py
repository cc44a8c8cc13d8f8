"""How good the target is: against test data where there are any, and without data on probe images.

Test data only ever report. The teachers are scored side by side, as if all of them were kept: each
for its own labels, averaged where two know one. Retention is what the target keeps of that. All
figures are rounded to six decimals, so that programs on different machines can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfka_dist.data import LabelledImages
from dfka_dist.errors import InputError, RunFailed

Predict = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (N, C, H, W) in [0, 1] -> per teacher name the probabilities (N, K_m)."""

Labels = Mapping[str, Sequence[str]]
"""Per teacher name what its columns mean."""

CONFIDENT = 0.5
"""Probability from which a teacher counts as lighting a label."""


def evaluate(
    data: Sequence[tuple[LabelledImages, Sequence[str]]],
    teacher_labels: Labels,
    target_labels: Labels,
    wanted: Sequence[str],
    ask_teachers: Predict | None,
    ask_target: Predict,
    batch_size: int = 250,
) -> dict[str, Any] | None:
    """The `evaluation` of result.json; None where there are no data.

    The pooled figures come from the first data set that covers all wanted labels and whose teachers
    know them all; without one they are None. A teacher is scored on the data set that covers most
    of its wanted labels, and left out if none covers any. Every image of a data set takes part in
    the average precisions; accuracy is over those with exactly one true label. A score that has no
    image to rest on is None.

    Args:
        data: data sets, each with the names of the teachers it is for.
        teacher_labels: all labels that each teacher predicts, in its order.
        target_labels: the labels that each branch of the target keeps, in the branch's order.
        wanted: the customised labels, in the user's order.
        ask_teachers: None where there are no teachers; their scores and retention are None then.

    Raises:
        InputError: data cannot be read.
        RunFailed: a network predicts something else than probabilities.
    """
    if not data:
        return None
    passes = [
        _Pass.over(images, names, ask_teachers, ask_target, batch_size) for images, names in data
    ]
    return {
        **_pooled(passes, teacher_labels, target_labels, wanted),
        "per_teacher": _per_teacher(passes, teacher_labels, target_labels, wanted),
    }


def merge(probabilities: Mapping[str, Tensor], labels: Labels, wanted: Sequence[str]) -> Tensor:
    """Several networks as one: the probabilities (N, K) of the K wanted labels, in their order.

    Each label is predicted by whoever knows it, and averaged where several do.

    Raises:
        InputError: nobody knows a wanted label.
    """
    columns = []
    for label in wanted:
        known = [
            rows[:, list(labels[name]).index(label)]
            for name, rows in probabilities.items()
            if label in labels[name]
        ]
        if not known:
            raise InputError("target.labels", f"no teacher knows {label!r}", "labels of teachers")
        columns.append(torch.stack(known).mean(dim=0))
    return torch.stack(columns, dim=1)


def agreement_and_coverage(
    teacher_probabilities: Tensor,
    target_probabilities: Tensor,
    spread_features: Tensor,
    labels: Sequence[str],
    *,
    nothing: bool = False,
) -> dict[str, Any]:
    """The `data_free` of result.json, on N probe images.

    Agreement is the share of images with the same top label, or of which both say that they show
    none where they may. Per label, `share` is the part of the
    images on which the teachers' top label is this one with a probability of at least 0.5, and
    `spread` how far apart those images are: the mean distance of their features to their mean, over
    the same of all images (0 with fewer than two).

    Args:
        teacher_probabilities: (N, K), the teachers merged.
        target_probabilities: (N, K).
        spread_features: (N, E): embeddings, or small images flattened.
        labels: the K names.
        nothing: an image may show none of them; whoever gives no label a probability of at least
            0.5 says so.
    """
    confidence, top = teacher_probabilities.max(dim=1)
    own_confidence, own = target_probabilities.max(dim=1)
    same = top == own
    if nothing:
        neither = (confidence < CONFIDENT) & (own_confidence < CONFIDENT)
        both = (confidence >= CONFIDENT) & (own_confidence >= CONFIDENT)
        same = neither | (both & same)
    agreement = same.double().mean().item()
    features = spread_features.double()
    whole = _mean_distance(features)
    coverage = {}
    for index, label in enumerate(labels):
        lit = (top == index) & (confidence >= CONFIDENT)
        spread = _ratio(_mean_distance(features[lit]), whole)
        share = lit.double().mean().item()
        coverage[label] = {"share": _rounded(share), "spread": _rounded(spread) or 0.0}
    return {"agreement": _rounded(agreement), "coverage": coverage}


@dataclass(frozen=True)
class _Pass:
    """What one pass over a data set left behind: predictions and truth, no images."""

    data: LabelledImages
    teachers: dict[str, Tensor] | None
    target: dict[str, Tensor]
    truth: Tensor

    @classmethod
    def over(
        cls,
        data: LabelledImages,
        names: Sequence[str],
        ask_teachers: Predict | None,
        ask_target: Predict,
        batch_size: int,
    ) -> _Pass:
        """Ask teachers and target about every image once; keep the answers of `names`."""
        teachers: dict[str, list[Tensor]] = {}
        target: dict[str, list[Tensor]] = {}
        truth = []
        for images, present in data.batches(batch_size):
            if ask_teachers is not None:
                _keep(teachers, ask_teachers(images), names, data.name)
            _keep(target, ask_target(images), names, data.name)
            truth.append(present)
        answered = None if ask_teachers is None else _joined(teachers)
        return cls(data, answered, _joined(target), torch.cat(truth))

    def truth_of(self, labels: Sequence[str]) -> Tensor:
        """Truth bool (N, K) in the order of `labels`, False for those the data do not know."""
        absent = torch.zeros(len(self.truth), dtype=torch.bool)
        index = {label: column for column, label in enumerate(self.data.labels)}
        columns = [self.truth[:, index[x]] if x in index else absent for x in labels]
        return torch.stack(columns, dim=1)


def _keep(
    answers: dict[str, list[Tensor]],
    answer: Mapping[str, Tensor],
    names: Sequence[str],
    data: str,
) -> None:
    for name in names:
        if name not in answer:  # a teacher of which no label is wanted has no branch
            continue
        rows = answer[name].detach().cpu().float()
        if not torch.isfinite(rows).all():
            raise RunFailed(f"the predictions for {name} on the data {data} are not finite")
        # Averages and half precision may leave [0, 1] by a rounding, which torchmetrics would take
        # as a sign of logits.
        answers.setdefault(name, []).append(rows.clamp(0, 1))


def _joined(answers: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(rows) for name, rows in answers.items()}


def _pooled(
    passes: Sequence[_Pass], teacher_labels: Labels, target_labels: Labels, wanted: Sequence[str]
) -> dict[str, Any]:
    found = next((seen for seen in passes if _covers(seen, teacher_labels, wanted)), None)
    if found is None:
        keys = ("dataset", "examples", "teachers", "target", "retention", "per_label")
        return dict.fromkeys(keys)
    truth = found.truth_of(wanted)
    teachers = None
    if found.teachers is not None:
        teachers = _Scores.of(merge(found.teachers, teacher_labels, wanted), truth)
    target = _Scores.of(merge(found.target, target_labels, wanted), truth)
    theirs = [None] * len(wanted) if teachers is None else teachers.each
    per_label = {
        label: {"teacher": _rounded(teacher), "target": _rounded(student)}
        for label, teacher, student in zip(wanted, theirs, target.each, strict=True)
    }
    return {
        "dataset": found.data.name,
        "examples": len(found.truth),
        **_compared("teachers", teachers, target),
        "per_label": per_label,
    }


def _covers(seen: _Pass, teacher_labels: Labels, wanted: Sequence[str]) -> bool:
    known = {label for name in seen.target for label in teacher_labels[name]}
    return set(wanted) <= set(seen.data.labels) & known


def _per_teacher(
    passes: Sequence[_Pass], teacher_labels: Labels, target_labels: Labels, wanted: Sequence[str]
) -> dict[str, Any]:
    rows = {}
    for name, branch in target_labels.items():
        own = [label for label in wanted if label in branch and label in teacher_labels[name]]
        seen = _best_pass(passes, name, own)
        if seen is None:
            continue
        truth = seen.truth_of(own)
        teacher = None
        if seen.teachers is not None:
            teacher = _Scores.of(merge({name: seen.teachers[name]}, teacher_labels, own), truth)
        target = _Scores.of(merge({name: seen.target[name]}, target_labels, own), truth)
        rows[name] = {
            "dataset": seen.data.name,
            "examples": len(truth),
            **_compared("teacher", teacher, target),
        }
    return rows


def _best_pass(passes: Sequence[_Pass], name: str, own: Sequence[str]) -> _Pass | None:
    """The data set of a teacher that covers most of its labels; the first of equals."""

    def covered(seen: _Pass) -> int:
        return len(set(own) & set(seen.data.labels)) if name in seen.target else 0

    best = max(passes, key=covered)
    return best if covered(best) else None


@dataclass(frozen=True)
class _Scores:
    """How well probabilities (N, K) meet the truth (N, K)."""

    each: list[float | None]
    """Average precision of each label; None without a positive example."""
    accuracy: float | None

    @classmethod
    def of(cls, probabilities: Tensor, truth: Tensor) -> _Scores:
        return cls(_average_precisions(probabilities, truth), _accuracy(probabilities, truth))

    @property
    def mean_average_precision(self) -> float | None:
        known = [value for value in self.each if value is not None]
        return sum(known) / len(known) if known else None


def _average_precisions(probabilities: Tensor, truth: Tensor) -> list[float | None]:
    # Imported here because it takes seconds and loads half of the installed packages with it.
    from torchmetrics.functional.classification import binary_average_precision

    # Label by label rather than multilabel_average_precision, which refuses a single label.
    return [
        binary_average_precision(guesses, positive.long()).item() if positive.any() else None
        for guesses, positive in zip(probabilities.T, truth.T, strict=True)
    ]


def _accuracy(probabilities: Tensor, truth: Tensor) -> float | None:
    """Top-1 over all labels, of the examples with exactly one true label."""
    from torchmetrics.functional.classification import multiclass_accuracy

    single = truth.sum(dim=1) == 1
    if not single.any():
        return None
    right = truth[single].int().argmax(dim=1)
    labels = max(2, truth.shape[1])  # torchmetrics refuses a single class
    accuracy: Tensor = multiclass_accuracy(
        probabilities[single].argmax(dim=1), right, num_classes=labels, average="micro"
    )
    return accuracy.item()


def _compared(teacher_key: str, teacher: _Scores | None, target: _Scores) -> dict[str, Any]:
    def both(mean: float | None, accuracy: float | None) -> dict[str, float | None]:
        return {"mAP": _rounded(mean), "accuracy": _rounded(accuracy)}

    own = both(target.mean_average_precision, target.accuracy)
    if teacher is None:
        return {teacher_key: None, "target": own, "retention": None}
    return {
        teacher_key: both(teacher.mean_average_precision, teacher.accuracy),
        "target": own,
        "retention": both(
            _ratio(target.mean_average_precision, teacher.mean_average_precision),
            _ratio(target.accuracy, teacher.accuracy),
        ),
    }


def _mean_distance(features: Tensor) -> float:
    """Mean distance of rows (n, E) to their mean; 0 for fewer than two."""
    if len(features) < 2:
        return 0.0
    return float((features - features.mean(dim=0)).norm(dim=1).mean())


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _rounded(value: float | None) -> float | None:
    # A ratio of two tiny numbers may overflow, and JSON knows no infinity.
    return round(value, 6) if value is not None and math.isfinite(value) else None


def spearman(own: Sequence[float], true: Sequence[float]) -> float:
    """Rank correlation of two scores of the same things."""
    # Imported here because it takes seconds and loads half of the installed packages with it.
    from torchmetrics.functional import spearman_corrcoef

    ranks = spearman_corrcoef(*(torch.tensor(list(each)).double() for each in (own, true)))
    return round(float(ranks), 4)
