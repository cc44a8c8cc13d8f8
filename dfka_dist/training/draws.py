"""What a run draws at random, latents and label sets, and the images made of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dfka_dist.config import RunConfig, TeacherSpec
from dfka_dist.models.generator import GroupStackGenerator, Stack
from dfka_dist.training.engines import only_synthesizing
from dfka_dist.training.streams import Streams


class Draws:
    """Latents and label sets by stream, step and global sample index.

    Args:
        labels: the customised labels, in their order.
    """

    def __init__(
        self,
        config: RunConfig,
        labels: list[str],
        teachers: Mapping[str, TeacherSpec],
        device: torch.device,
    ) -> None:
        self._streams = Streams(config.run.seed)
        self._spec, self._sampled = config.generator, config.training.sampled_labels
        self._labels, self._teachers, self._device = labels, teachers, device

    def latents(self, stream: str, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Noise (N, Z), and the label sets asked for (N, C); all zero where none are sampled."""
        noise = self._streams.normal(f"noise.{stream}", step, rows, self._spec.latent)
        most = min(self._spec.labels_per_image, len(self._labels))
        sets = self._streams.label_sets(f"labels.{stream}", step, rows, len(self._labels), most)
        asked_for = sets if self._sampled else torch.zeros_like(sets)
        return noise.to(self._device), asked_for.to(self._device)

    def targets(self, asked_for: Tensor) -> dict[str, Tensor] | None:
        """The label sets as each teacher names them, (N, K); None where none are sampled."""
        if not self._sampled:
            return None
        return {name: self._as_named(spec, asked_for) for name, spec in self._teachers.items()}

    def synthesize(
        self, generator: GroupStackGenerator, stream: str, step: int, rows: range
    ) -> Tensor:
        """Images (N, C, H, W) of a generator out of turn, of which nothing moves."""
        with only_synthesizing(generator):
            stack: Stack = generator(*self.latents(stream, step, rows))
        return stack.images

    def sheet(self, generator: GroupStackGenerator, each: int) -> Tensor:
        """(C * each, C, H, W) on the CPU, label after label; `each` is even."""
        rows = range(len(self._labels) * each)
        images = self.synthesize(generator, "samples", 0, rows)
        by_label = sorted(rows, key=lambda row: (row // 2) % len(self._labels))
        return images[by_label].cpu()

    def _as_named(self, spec: TeacherSpec, asked_for: Tensor) -> Tensor:
        nothing = asked_for.new_zeros(len(asked_for))
        known = {label: asked_for[:, i] for i, label in enumerate(self._labels)}
        return torch.stack([known.get(label, nothing) for label in spec.labels], dim=1)
