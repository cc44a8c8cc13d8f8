"""How rates and weights move over a phase, as functions of the step alone."""

from __future__ import annotations

import math

from dfka_dist.config import LossWeights

RAMP_UP, RAMP_DOWN = 0.1, 0.6
"""Shares of a phase: the disagreement grows until the first, and fades from the second on."""


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 towards `end` at the last step."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def weights_at(weights: LossWeights, step: int, steps: int) -> LossWeights:
    """Disagreement is ramped up, while the student knows nothing, and down to 0, so that it can
    settle."""
    done = step / max(1, steps)
    share = min(1.0, done / RAMP_UP, max(0.0, (1 - done) / (1 - RAMP_DOWN)))
    return weights.model_copy(update={"adversarial": weights.adversarial * share})
