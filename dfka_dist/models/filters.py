"""Teacher-level filters f_m: what of a shared feature a teacher should see (eq. 9, 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""(C, H, W)"""


class TeacherFilter(nn.Module):
    """A gate per channel, from global pooling and two fully connected layers.

    `gate = 2 sigmoid(W2 relu(W1 pool(F)))` with W2 zero at first, so that a new filter passes
    everything unchanged and a frozen BatchNorm behind it sees features of the usual scale. Between
    networks whose features differ, a 1x1 convolution and interpolation come first; `adapt` has the
    convolution even between equal shapes.
    """

    def __init__(self, *, source: Shape, wanted: Shape, adapt: bool = False) -> None:
        super().__init__()
        channels = wanted[0]
        hidden = max(16, channels // 4)
        self.size = wanted[1:]
        needed = adapt or source != wanted
        self.adapter = nn.Conv2d(source[0], channels, kernel_size=1) if needed else None
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def adapt(self, features: Tensor) -> Tensor:
        """Features in the wanted shape (N, *wanted), not yet gated."""
        if self.adapter is None:
            return features
        if features.shape[2:] != self.size:
            # On a CPU this interpolation does not exist in bf16.
            features = nn.functional.interpolate(
                features.float(), size=self.size, mode="bilinear", antialias=True
            )
        adapted: Tensor = self.adapter(features)
        return adapted

    def gate(self, adapted: Tensor) -> Tensor:
        """Gates (N, C) in 0..2 for features (N, C, H, W)."""
        hidden = torch.relu(self.squeeze(adapted.mean(dim=(2, 3))))
        return 2 * torch.sigmoid(self.excite(hidden))

    def forward(self, features: Tensor) -> Tensor:
        """Filtered features f_m(F), (N, *wanted)."""
        adapted = self.adapt(features)
        return adapted * self.gate(adapted)[:, :, None, None]


class Filtered(NamedTuple):
    """A feature as the teachers will see it: it travels once, with a gate for each teacher."""

    feature: Tensor
    """(N, C, H, W) as it was made."""
    adapted: dict[str, Tensor]
    """A teacher's own form of it, for teachers with an adapter only."""
    gates: dict[str, Tensor]
    """Per teacher the gate (N, C) of f_m (eq. 9)."""

    def form(self, teacher: str) -> Tensor:
        """What a teacher's gate is multiplied onto."""
        return self.adapted.get(teacher, self.feature)


class FilterBank(nn.ModuleDict):
    """New filters of several teachers behind one feature: from its shape to each teacher's."""

    def __init__(self, source: Shape, wanted: Mapping[str, Shape], *, adapt: bool = False) -> None:
        super().__init__(
            {n: TeacherFilter(source=source, wanted=own, adapt=adapt) for n, own in wanted.items()}
        )

    def forward(self, feature: Tensor) -> Filtered:
        """Adapt where needed, and gate, for every teacher."""
        adapted, gates = {}, {}
        for name, own in self.items():
            assert isinstance(own, TeacherFilter)
            form = own.adapt(feature)
            gates[name] = own.gate(form).float()
            if own.adapter is not None:
                adapted[name] = form.float()
        return Filtered(feature, adapted, gates)
