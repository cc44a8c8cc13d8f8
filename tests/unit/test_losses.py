"""Every term against values worked out by hand.

Used throughout: sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, softmax(0, ln 3) = (1/4, 3/4), and
softplus(x) = ln(1 + e^x), the binary cross-entropy of logit x to the target 0 and of -x to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights, Task

LN2, LN3 = math.log(2), math.log(3)

NONE = LossWeights.model_validate(dict.fromkeys(LossWeights.model_fields, 0.0))


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def weights(**some: float) -> LossWeights:
    return NONE.model_copy(update=some)


# probabilities and decisions


def test_probabilities_of_a_multi_label_teacher_are_sigmoids() -> None:
    assert torch.allclose(
        losses.probabilities(tensor([0.0, LN3]), "multi_label"), tensor([0.5, 0.75])
    )


def test_probabilities_of_a_single_label_teacher_are_a_softmax() -> None:
    assert torch.allclose(
        losses.probabilities(tensor([0.0, LN3]), "single_label"), tensor([0.25, 0.75])
    )


def test_multi_label_decisions_are_on_from_one_half() -> None:
    """Eq. 5: t = 1 where y >= 0.5, so at the logit 0 as well."""
    found = losses.decisions(tensor([-0.1, 0.0, 0.1], [3.0, -3.0, -1.0]), "multi_label")
    assert torch.equal(found, tensor([0.0, 1.0, 1.0], [1.0, 0.0, 0.0]))


def test_single_label_decision_is_the_largest_logit_however_small() -> None:
    found = losses.decisions(tensor([-5.0, -3.0, -4.0], [2.0, 1.0, 0.0]), "single_label")
    assert torch.equal(found, tensor([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]))


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_no_gradient_goes_through_decisions(task: Task) -> None:
    assert not losses.decisions(tensor([1.0, 2.0]).requires_grad_(), task).requires_grad


# eq. 6


def test_one_hot_of_a_multi_label_teacher() -> None:
    # labels at logits 0 and ln 3 with targets 1 and 0: softplus(0) = ln 2, softplus(ln 3) = ln 4;
    # eq. 6 takes their mean over C = 2: (ln 2 + 2 ln 2) / 2 = 1.5 ln 2
    found = losses.one_hot(tensor([0.0, LN3]), tensor([1.0, 0.0]), "multi_label")
    assert found.item() == pytest.approx(1.5 * LN2)


def test_one_hot_of_a_single_label_teacher() -> None:
    # -ln softmax at the target: -ln(3/4) = ln 4 - ln 3, and for the second image -ln(1/4) = ln 4
    logits = tensor([0.0, LN3], [0.0, LN3])
    found = losses.one_hot(logits, tensor([0.0, 1.0], [1.0, 0.0]), "single_label")
    assert found.item() == pytest.approx((4 * LN2 - LN3) / 2)


def test_one_hot_is_least_where_the_target_is_met() -> None:
    target = tensor([1.0, 0.0])
    met, missed = (
        losses.one_hot(logits, target, "multi_label")
        for logits in (tensor([8.0, -8.0]), tensor([-8.0, 8.0]))
    )
    assert met < 0.001 < missed


# eq. 7


def test_discrete_is_the_mean_probability() -> None:
    # eq. 7: (1/2 + 3/4) / 2
    assert losses.discrete(tensor([0.0, LN3]), "multi_label").item() == pytest.approx(0.625)


def test_discrete_is_left_out_for_a_single_label_teacher() -> None:
    assert losses.discrete(tensor([0.0, LN3]), "single_label").item() == 0


# DAFL's terms of eq. 8


def test_activation_is_minus_the_mean_size_of_the_features() -> None:
    # -(1 + 2 + 0 + 3) / 4
    assert losses.activation(tensor([1.0, -2.0], [0.0, -3.0])).item() == -1.5


def test_entropy_of_a_single_label_teacher_is_summed_over_labels() -> None:
    # 1/4 ln 1/4 + 3/4 ln 3/4 = 3/4 ln 3 - 2 ln 2
    found = losses.entropy(torch.tensor([0.25, 0.75], dtype=torch.float64), "single_label")
    assert found.item() == pytest.approx(0.75 * LN3 - 2 * LN2)


def test_entropy_of_a_multi_label_teacher_is_averaged_over_labels() -> None:
    # (1/2 ln 1/2 + 1/4 ln 1/4) / 2 = (-ln 2 / 2 - ln 2 / 2) / 2
    found = losses.entropy(torch.tensor([0.5, 0.25], dtype=torch.float64), "multi_label")
    assert found.item() == pytest.approx(-LN2 / 2)


def test_entropy_of_a_label_that_never_occurs_is_zero() -> None:
    assert losses.entropy(torch.tensor([0.0, 1.0]), "single_label").item() == 0


def test_entropy_of_a_single_label_teacher_is_least_where_all_labels_occur_equally() -> None:
    even, uneven = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert losses.entropy(even, "single_label") < losses.entropy(uneven, "single_label")


# eq. 11


def test_group_of_a_multi_label_teacher() -> None:
    # the image says 3/4, the feature's logit is 0: -(3/4 ln 1/2 + 1/4 ln 1/2) = ln 2
    found = losses.group(tensor([0.0]), tensor([LN3]), "multi_label")
    assert found.item() == pytest.approx(LN2)


def test_group_of_a_single_label_teacher() -> None:
    # the image says (1/4, 3/4), the feature (1/2, 1/2)
    found = losses.group(tensor([0.0, 0.0]), tensor([0.0, LN3]), "single_label")
    assert found.item() == pytest.approx(LN2)


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_group_is_least_where_feature_and_image_agree(task: Task) -> None:
    image = tensor([0.3, -1.2, 2.0])
    feature = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.group(feature, image, task), feature)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_group_does_not_pull_the_image_towards_the_feature(task: Task) -> None:
    image, feature = tensor([0.3, -1.2]).requires_grad_(), tensor([1.0, 1.0]).requires_grad_()
    losses.group(feature, image, task).backward()  # type: ignore[no-untyped-call]
    assert image.grad is None


# statistics


def sums_of(values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count and sums of values (N, C) around a mean (C,)."""
    centred = values - mean
    return tensor(float(len(values))), centred.sum(0), centred.square().sum(0)


def test_batch_norm_is_zero_where_the_statistics_match() -> None:
    # values -1 and 3 in one channel, 0 and 2 in the other: means 1 and 1, variances 4 and 1
    sums = sums_of(tensor([-1.0, 0.0], [3.0, 2.0]), torch.tensor([1.0, 1.0]).double())
    found = losses.batch_norm(*sums, torch.tensor([4.0, 1.0]).double(), [2])
    assert found.item() == pytest.approx(0, abs=1e-12)


def test_batch_norm_of_a_shifted_mean() -> None:
    # mean 3 where 1 ran, variance 4 as it ran: shift 2, so 2^2 / 4 = 1
    sums = sums_of(tensor([1.0], [5.0]), torch.tensor([1.0]).double())
    found = losses.batch_norm(*sums, torch.tensor([4.0]).double(), [1])
    assert found.item() == pytest.approx(1.0)


def test_batch_norm_of_another_variance() -> None:
    # mean 1 as it ran, variance 4 where 2 ran: spread 2, so 2^2 / 2^2 = 1
    sums = sums_of(tensor([-1.0], [3.0]), torch.tensor([1.0]).double())
    found = losses.batch_norm(*sums, torch.tensor([2.0]).double(), [1])
    assert found.item() == pytest.approx(1.0)


def test_batch_norm_is_averaged_over_layers_however_wide() -> None:
    # the first layer matches in its one channel, the second is 1 in each of its two: (0 + 1) / 2
    ran = torch.tensor([1.0, 1.0, 1.0]).double()
    count, first, second = sums_of(tensor([-1.0, 1.0, 1.0], [3.0, 5.0, 5.0]), ran)
    running_var = torch.tensor([4.0, 4.0, 4.0]).double()
    found = losses.batch_norm(count.repeat(2), first, second, running_var, [1, 2])
    assert found.item() == pytest.approx(0.5)


def test_batch_norm_does_not_depend_on_the_scale_of_a_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    ran, variance = torch.zeros(3).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    small = losses.batch_norm(*sums_of(values, ran), variance, [3])
    large = losses.batch_norm(*sums_of(10 * values, ran), 100 * variance, [3])
    assert large.item() == pytest.approx(small.item())


def test_batch_norm_has_a_finite_gradient_where_the_statistics_match() -> None:
    values = tensor([-1.0], [3.0]).requires_grad_()
    sums = sums_of(values, torch.tensor([1.0]).double())
    loss = losses.batch_norm(*sums, torch.tensor([4.0]).double(), [1])
    assert torch.autograd.grad(loss, values)[0].isfinite().all()


def test_batch_norm_has_the_gradient_of_its_value() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    variance = torch.tensor([0.5, 1.0, 2.0]).double()

    def loss(values: Tensor) -> Tensor:
        count, first, second = sums_of(values, torch.zeros(3).double())
        return losses.batch_norm(count.repeat(2), first, second, variance, [1, 2])

    assert torch.autograd.gradcheck(loss, values)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(2, 12), at=st.integers(1, 11), channels=st.lists(st.integers(1, 3), min_size=1)
)
def test_batch_norm_takes_sums_that_were_added_up(rows: int, at: int, channels: list[int]) -> None:
    generator = torch.Generator().manual_seed(rows)
    wide = sum(channels)
    values = torch.randn(rows, wide, generator=generator, dtype=torch.float64)
    ran = torch.zeros(wide).double()
    variance = torch.rand(wide, generator=generator, dtype=torch.float64) + 0.5
    whole = sums_of(values, ran)
    parts = [sums_of(part, ran) for part in (values[:at], values[at:])]
    added = [left + right for left, right in zip(*parts, strict=True)]
    found = [
        losses.batch_norm(count.repeat(len(channels)), first, second, variance, channels)
        for count, first, second in (whole, added)
    ]
    assert found[1].item() == pytest.approx(found[0].item(), rel=1e-12)


# student and teacher


def test_adversarial_is_minus_the_mean_disagreement() -> None:
    # -(1 + 0.5 + 0 + 0.5) / 4
    student, teacher = tensor([1.0, 0.0], [2.0, 1.0]), tensor([0.0, 0.5], [2.0, 0.5])
    assert losses.adversarial(student, teacher).item() == -0.5


def test_adversarial_gains_nothing_beyond_its_clamp() -> None:
    far, farther = (
        losses.adversarial(tensor([factor * losses.CLAMP]), tensor([0.0])) for factor in (1, 9)
    )
    assert far == farther == -losses.CLAMP


def test_distill_of_a_multi_label_teacher() -> None:
    # eq. 13 to the teacher's 3/4 and 1/2 at logits 0 and ln 3, the mean over both labels:
    # (-3/4 ln 1/2 - 1/4 ln 1/2 - 1/2 ln 3/4 - 1/2 ln 1/4) / 2 = (3 ln 2 - 1/2 ln 3) / 2
    found = losses.distill(tensor([0.0, LN3]), tensor([LN3, 0.0]), "multi_label")
    assert found.item() == pytest.approx(1.5 * LN2 - 0.25 * LN3)


def test_distill_of_a_single_label_teacher() -> None:
    # eq. 13 to the teacher's (1/2, 1/2) at (1/4, 3/4): -1/2 ln 1/4 - 1/2 ln 3/4
    found = losses.distill(tensor([0.0, LN3]), tensor([0.0, 0.0]), "single_label")
    assert found.item() == pytest.approx(2 * LN2 - LN3 / 2)


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_distill_has_the_gradient_of_its_value(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)

    def loss(said: Tensor) -> Tensor:
        return losses.distill(said, teacher, task)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_logits_is_their_mean_distance() -> None:
    # (|1 - 0| + |2 - 4| + |0 - 0| + |-1 - 4|) / 4
    student, teacher = tensor([1.0, 2.0], [0.0, -1.0]), tensor([0.0, 4.0], [0.0, 4.0])
    assert losses.logits(student, teacher).item() == 2.0


def test_a_block_weighs_its_teachers_by_lambda() -> None:
    # eq. 14, lambda_m given for one of three: 0.5 * 2 + 1 * 3 + 1 * 5
    parts = {"a": torch.tensor(2.0), "b": torch.tensor(3.0), "c": torch.tensor(5.0)}
    some = LossWeights(distill={"a": 0.5})
    assert losses.block(parts, some).item() == 9.0


def test_a_weight_of_the_whole_term_is_no_lambda() -> None:
    # eq. 14: 2 + 3; the weight 0.5 stands in front of the sum, in `weigh`
    parts = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert losses.block(parts, LossWeights(distill=0.5)).item() == 5.0


def test_lambda_by_teacher_leaves_the_whole_term_its_weight() -> None:
    report = losses.weigh(
        NONE.model_copy(update={"distill": {"a": 0.5}}), {"distill": lambda: torch.tensor(9.0)}
    )
    assert report.total.item() == 9.0


def test_both_streams_are_weighed_against_each_other() -> None:
    # eq. 16: 3 + 0.5 * 4
    assert losses.both_streams(torch.tensor(3.0), torch.tensor(4.0), 0.5).item() == 5.0


def test_a_mean_over_all_labels_is_that_of_the_concatenated_outputs() -> None:
    # eq. 10: 4 for the one label of a teacher, 0, 1 and 5 for another's: (4 + 0 + 1 + 5) / 4
    parts = [torch.tensor(4.0), torch.tensor(2.0)]
    assert losses.concatenated(parts, [1, 3]).item() == 2.5


# images


def test_total_variation_is_the_mean_step_between_neighbours() -> None:
    # downwards: |1-0|, |3-2| -> mean 1; across: |2-0|, |3-1| -> mean 2
    assert losses.total_variation(tensor([[[0.0, 2.0], [1.0, 3.0]]])).item() == 3


def test_total_variation_of_a_plain_picture_is_zero() -> None:
    assert losses.total_variation(torch.full((2, 3, 4, 4), 0.7)).item() == 0


def test_l2_is_the_mean_square_of_the_pixels() -> None:
    # (0 + 1 + 4 + 9) / 4
    assert losses.l2(tensor([[[0.0, 1.0], [2.0, 3.0]]])).item() == 3.5


def test_diversity_is_one_where_a_pair_of_images_is_the_same() -> None:
    noise = torch.tensor([[0.0], [1.0]])
    assert losses.diversity(torch.zeros(2, 1, 2, 2), noise).item() == 1


def test_diversity_is_a_half_at_the_distance_that_counts_as_distinct() -> None:
    # images DISTINCT apart from noise 1 apart: r = s, so s / (r + s) = 1/2
    images = torch.zeros(2, 1, 2, 2)
    images[1] = losses.DISTINCT
    assert losses.diversity(images, torch.tensor([[0.0], [1.0]])).item() == pytest.approx(0.5)


def test_diversity_compares_only_images_of_a_pair() -> None:
    # 0 and 1 are the same, 2 and 3 are the same; that the pairs differ does not help
    images = torch.zeros(4, 1, 2, 2)
    images[2:] = 1.0
    assert losses.diversity(images, torch.arange(4.0)[:, None]).item() == 1


# all terms


def images_and_noise(leaf: Tensor) -> Tensor:
    return losses.diversity(leaf[:, None, None, :], torch.arange(12.0).view(4, 3).double() ** 2)


TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "one_hot": lambda x: losses.one_hot(x, torch.ones_like(x), "multi_label"),
    "one_hot, single": lambda x: losses.one_hot(x, torch.eye(4, 3).double(), "single_label"),
    "discrete": lambda x: losses.discrete(x, "multi_label"),
    "activation": losses.activation,
    "entropy": lambda x: losses.entropy(x.sigmoid().mean(0), "multi_label"),
    "entropy, single": lambda x: losses.entropy(x.softmax(1).mean(0), "single_label"),
    "group": lambda x: losses.group(x, torch.ones_like(x), "multi_label"),
    "adversarial": lambda x: losses.adversarial(x, torch.ones_like(x)),
    "diversity": images_and_noise,
    "total_variation": lambda x: losses.total_variation(x[:, None, None, :].expand(-1, 1, 2, -1)),
    "l2": losses.l2,
    "distill": lambda x: losses.distill(x, torch.ones_like(x), "multi_label"),
    "distill, single": lambda x: losses.distill(x, torch.ones_like(x), "single_label"),
    "logits": lambda x: losses.logits(x, torch.ones_like(x)),
}


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_a_number_with_a_gradient(term: str) -> None:
    leaf = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = TERMS[term](leaf.requires_grad_())
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


# the weighted sum


def test_terms_are_summed_up_by_their_weights() -> None:
    terms = {"one_hot": lambda: torch.tensor(2.0), "group": lambda: torch.tensor(3.0)}
    report = losses.weigh(weights(one_hot=0.5, group=2.0), terms)
    assert report.total.item() == 7.0


def test_reported_terms_are_without_their_weights() -> None:
    report = losses.weigh(weights(group=2.0), {"group": lambda: torch.tensor(3.0)})
    assert {name: value.item() for name, value in report.terms.items()} == {"group": 3.0}


def test_a_term_of_weight_zero_is_not_even_computed() -> None:
    computed: list[str] = []

    def one_hot() -> Tensor:
        computed.append("one_hot")
        return torch.tensor(1.0)

    losses.weigh(weights(group=1.0), {"one_hot": one_hot, "group": lambda: torch.tensor(1.0)})
    assert computed == []


def test_the_weighted_sum_has_the_weighted_gradient() -> None:
    leaf = torch.tensor(3.0, requires_grad=True)
    losses.weigh(weights(l2=0.5), {"l2": lambda: leaf.square()}).total.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.item() == 3.0  # 0.5 * 2 * 3


def test_reported_terms_carry_no_graph() -> None:
    leaf = torch.tensor(3.0, requires_grad=True)
    report = losses.weigh(weights(l2=0.5), {"l2": lambda: leaf.square()})
    assert not report.terms["l2"].requires_grad


def test_without_any_weight_the_sum_is_zero() -> None:
    assert losses.weigh(NONE, {"l2": lambda: torch.tensor(1.0)}).total.item() == 0
