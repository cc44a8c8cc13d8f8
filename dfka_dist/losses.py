"""Every term of both objectives: a pure function with its equation, and the weighted sum of them.

Equation numbers are those of the method (Ye et al., CVPR 2020, arXiv 2003.09088). y are a teacher's
probabilities (sigmoid per label for a multi-label teacher, softmax for a single-label one); all
losses take logits. Shapes: N batch, K labels of one teacher, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dfka_dist.config import LossWeights, Task

CLAMP = 4.0
"""Disagreement in logits beyond which the generator gains nothing more."""
DISTINCT = 0.02
"""Image distance over noise distance at which `diversity` is at half of its worst."""


@dataclass(frozen=True)
class LossReport:
    """A weighted sum, and what went into it."""

    total: Tensor
    """Scalar, differentiable."""
    terms: dict[str, Tensor]
    """Unweighted scalars by their names in `LossWeights`, detached."""


def weigh(weights: LossWeights, terms: Mapping[str, Callable[[], Tensor]]) -> LossReport:
    """Sum up the terms whose weight is not zero; the others are not even computed."""
    values = {name: term() for name, term in terms.items() if weights.of(name)}
    weighted = [weights.of(name) * value for name, value in values.items()]
    total = torch.stack(weighted).sum() if weighted else torch.zeros((), requires_grad=True)
    return LossReport(total, {name: value.detach() for name, value in values.items()})


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """y (N, K): sigmoid per label, or softmax over labels."""
    return logits.sigmoid() if task == "multi_label" else logits.softmax(dim=1)


def decisions(logits: Tensor, task: Task) -> Tensor:
    """Eq. 5: t^i = 1 where y^i >= 0.5; for a single-label teacher the arg max. (N, K) of zeros
    and ones."""
    if task == "multi_label":
        return (logits.detach() >= 0).to(logits.dtype)
    best = logits.detach().argmax(dim=1)
    return functional.one_hot(best, logits.shape[1]).to(logits.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """CE(y, t) with soft targets t (N, K): the mean over images, and over labels for a
    multi-label teacher."""
    if task == "multi_label":
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets)


def one_hot(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Eq. 6: L_oh = (1/C) sum_i CE(y^i, t^i), t from `decisions` or the sampled label sets."""
    return cross_entropy(logits, targets, task)


def discrete(logits: Tensor, task: Task) -> Tensor:
    """Eq. 7: L_dis = (1/C) sum_i |y^i|; for a single-label teacher it is constant and left out
    (0)."""
    return logits.sigmoid().mean() if task == "multi_label" else logits.new_zeros(())


def activation(embedding: Tensor) -> Tensor:
    """DAFL's L_a = -mean |f_T|, f_T (N, E) in front of the last fully connected layer."""
    return -embedding.abs().mean()


def entropy(mean_probabilities: Tensor, task: Task) -> Tensor:
    """DAFL's L_ie = sum_i p_i ln p_i of the batch-mean prediction p (K,); over C for a
    multi-label teacher."""
    negative = torch.xlogy(mean_probabilities, mean_probabilities)
    return negative.mean() if task == "multi_label" else negative.sum()


def group(logits: Tensor, image_logits: Tensor, task: Task) -> Tensor:
    """Eq. 11, one group: CE(O(F_g^j), O(I_g)), the image's side soft and detached."""
    return cross_entropy(logits, probabilities(image_logits.detach(), task), task)


def concatenated(parts: Sequence[Tensor], labels: Sequence[int]) -> Tensor:
    """The mean over the labels of all teachers (eq. 10) of what is a mean over each one's own."""
    weights = torch.tensor(labels, dtype=parts[0].dtype, device=parts[0].device)
    return (torch.stack(list(parts)) * weights / weights.sum()).sum()


def batch_norm(
    count: Tensor, first: Tensor, second: Tensor, running_var: Tensor, channels: Sequence[int]
) -> Tensor:
    """DeepInversion's statistics loss, from sums that can be added over any split of the batch.

    Per layer the mean squared distance of the batch's mean and variance from the running ones, each
    relative to the scale of the running variance; the mean over layers. Squares, not lengths: a
    length pulls as hard when the statistics nearly match, and leaves the other terms no room.

    Args:
        count: (L,) values per channel that went into each layer's sums.
        first, second: (sum of channels,) sums of (x - running mean) and of its square.
        running_var: (sum of channels,)
        channels: of each layer.
    """
    losses = []
    parts = (torch.split(tensor, list(channels)) for tensor in (first, second, running_var))
    for n, s1, s2, variance in zip(count, *parts, strict=True):
        shift = s1 / n
        spread = s2 / n - shift.square() - variance
        losses.append(
            shift.square().mean() / variance.mean()
            + spread.square().mean() / variance.square().mean()
        )
    return torch.stack(losses).mean()


def adversarial(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the disagreement of student and teacher (DFAD, ZSKT): L1 on logits (N, K), clamped."""
    return -(student - teacher).abs().clamp(max=CLAMP).mean()


def diversity(images: Tensor, noise: Tensor) -> Tensor:
    """Mode seeking (Mao et al., CVPR 2019): unlike noise shall not give like images.

    With r the mean distance of two images over that of their noise, the mean of s / (r + s), in
    (0, 1].

    Args:
        images: (N, C, H, W) of which 2k and 2k + 1 were asked for the same labels.
        noise: (N, Z) that they were made of.
    """
    pairs = 2 * (len(images) // 2)
    apart = (images[0:pairs:2] - images[1:pairs:2]).flatten(1).abs().mean(1)
    inputs = (noise[0:pairs:2] - noise[1:pairs:2]).abs().mean(1)
    return (DISTINCT / (apart / inputs + DISTINCT)).mean()


def total_variation(images: Tensor) -> Tensor:
    """DeepInversion's image prior: mean absolute difference of neighbouring pixels of (N, C, H,
    W)."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def l2(images: Tensor) -> Tensor:
    """DeepInversion's image prior: mean square of the pixels."""
    return images.square().mean()


def distill(student: Tensor, teacher: Tensor, task: Task) -> Tensor:
    """Eq. 13: L_d^{b,m} = CE to the teacher's probabilities, both (N, K) of the customised
    labels."""
    return cross_entropy(student, probabilities(teacher, task), task)


def logits(student: Tensor, teacher: Tensor) -> Tensor:
    """L1 on logits (N, K): unlike eq. 13 it does not fade where the teacher is sure."""
    return (student - teacher).abs().mean()


def block(parts: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Eq. 14: L_d^b = sum_m lambda_m L_d^{b,m}."""
    return torch.stack([weights.lambda_of(name) * part for name, part in parts.items()]).sum()


def both_streams(own: Tensor, link: Tensor, link_weight: float) -> Tensor:
    """Eq. 16: L_u^b = lambda_1 L_d^b(F_1) + lambda_2 L_d^b(F_2), lambda_1 = 1."""
    return own + link_weight * link
