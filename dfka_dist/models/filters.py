"""Teacher-level filters f_m: what of a shared feature a teacher should see (eq. 9, 13)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""(C, H, W)"""


class TeacherFilter(nn.Module):
    """A gate per channel, from global pooling and two fully connected layers.

    `gate = 2 sigmoid(W2 relu(W1 pool(F)))` with W2 zero at first, so that a new filter passes
    everything unchanged and a frozen BatchNorm behind it sees features of the usual scale. Between
    networks whose features differ, a 1x1 convolution and interpolation come first.
    """

    def __init__(self, *, source: Shape, wanted: Shape) -> None:
        super().__init__()
        channels = wanted[0]
        hidden = max(16, channels // 4)
        self.size = wanted[1:]
        self.adapter = nn.Conv2d(source[0], channels, kernel_size=1) if source != wanted else None
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def adapt(self, features: Tensor) -> Tensor:
        """Features in the wanted shape (N, *wanted), not yet gated."""
        if self.adapter is None:
            return features
        # On a CPU this interpolation does not exist in bf16.
        resized = nn.functional.interpolate(
            features.float(), size=self.size, mode="bilinear", antialias=True
        )
        adapted: Tensor = self.adapter(resized)
        return adapted

    def gate(self, adapted: Tensor) -> Tensor:
        """Gates (N, C) in 0..2 for features (N, C, H, W)."""
        hidden = torch.relu(self.squeeze(adapted.mean(dim=(2, 3))))
        return 2 * torch.sigmoid(self.excite(hidden))

    def forward(self, features: Tensor) -> Tensor:
        """Filtered features f_m(F), (N, *wanted)."""
        adapted = self.adapt(features)
        return adapted * self.gate(adapted)[:, :, None, None]
