"""One frozen teacher: preprocessing, blocks and head, entered at any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfka_dist.config import Precision, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models import sources
from dfka_dist.models.filters import Shape
from dfka_dist.models.preprocessing import Preprocessing, channels_last
from dfka_dist.models.splitting import BlockChain, cut
from dfka_dist.teachers.interface import (
    BatchNormLayer,
    BatchNormSums,
    TeacherDescription,
    TeacherOutput,
    Wanted,
)


class Teacher:
    """A pure function of its inputs; its parameters and buffers never change.

    Args:
        spec: what it is; `key` says where that stands in the configuration, for errors.
        weights: what its file holds.

    Raises:
        InputError: source, weights, blocks or labels are wrong.
    """

    def __init__(self, spec: TeacherSpec, key: str, weights: sources.Weights) -> None:
        network = sources.build(spec, key)
        sources.load_state(network, weights.state, key)
        self.sha256 = weights.sha256
        network.eval().requires_grad_(False)
        self.spec = spec
        self.preprocessing = Preprocessing(spec.input)
        self.chain = cut(network, spec.blocks, _example(spec).to(_dtype(network)), key)
        self.chain.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._embedding = _last_linear(network, self.chain)
        self._parts = _batch_norms(network, self.chain)
        self._inputs: dict[str, Tensor] = {}
        self._listening = False
        self._stages = range(len(self.chain.stages))
        self._compiled = False
        for path in [
            *[layer.path for layer, _ in self._parts],
            *([self._embedding] if self._embedding else []),
        ]:
            self.chain.find(path).register_forward_pre_hook(self._hear(path))
        self.description = self._describe(network, key)

    def to(self, device: torch.device) -> Teacher:
        """Move to a device; in place."""
        self.chain.to(device)
        self.preprocessing.to(device)
        self._parts = [(layer, mean.to(device)) for layer, mean in self._parts]
        return self

    def keep(self, stages: range) -> Teacher:
        """Be a shard: hold these stages and no others, the head being the last; in place."""
        self.chain.keep(stages)
        self._stages = stages
        return self

    def compile(self) -> Teacher:
        """Have `torch.compile` make every stage that is held, at its first call; in place."""
        for index in self._stages:
            self.chain.stages[index].compile()
        self._compiled = True
        return self

    def forward(
        self,
        inputs: Tensor,
        *,
        depth: int = 0,
        gate: Tensor | None = None,
        wanted: Wanted,
        precision: Precision = "fp32",
    ) -> TeacherOutput:
        """Differentiable answer for inputs (N, C, H, W) at a depth; see `Question`.

        A shard that others stand in front of is entered at the depth of its own first block.
        """
        self._inputs, self._listening = {}, wanted.sums or wanted.embedding
        value = inputs if gate is None else inputs * gate[:, :, None, None]
        value = value if depth else self.preprocessing(value)
        if value.dtype != torch.bfloat16:  # as it comes from another shard
            value = value.to(_dtype(self.chain))
        try:
            with torch.autocast(value.device.type, torch.bfloat16, enabled=precision == "bf16"):
                last = self.chain(channels_last(value), depth, self._stages.stop)
            sums = self._sums() if wanted.sums else None
            if self._stages.stop <= self.chain.depth:
                return TeacherOutput(None, None, sums, last)
            heard = self._embedding if wanted.embedding else None
            embedding = None if heard is None else _at_least_fp32(self._inputs[heard])
            return TeacherOutput(_at_least_fp32(last), embedding, sums)
        finally:
            self._inputs, self._listening = {}, False

    def _hear(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if self._listening:
                self._inputs[path] = arguments[0]

        return hook

    def _sums(self) -> BatchNormSums:
        """Differentiable sums of the layers that ran; zero for all others."""
        counts, firsts, seconds = [], [], []
        for layer, mean in self._parts:
            value = self._inputs.get(layer.path)
            if value is None:
                count, first, second = 0, mean.new_zeros(mean.shape), mean.new_zeros(mean.shape)
            else:
                value = _at_least_fp32(value)
                dims = [0, *range(2, value.ndim)]
                count = value.numel() // value.shape[1]
                centred = value - mean.to(value.dtype).view(1, -1, *[1] * (value.ndim - 2))
                first, second = centred.sum(dims), centred.square().sum(dims)
            counts.append(count)
            firsts.append(first)
            seconds.append(second)
        if not counts:
            return BatchNormSums(torch.zeros(0), torch.zeros(0), torch.zeros(0))
        first = torch.cat(firsts)
        return BatchNormSums(first.new_tensor(counts), first, torch.cat(seconds))

    def _describe(self, network: nn.Module, key: str) -> TeacherDescription:
        spec = self.spec
        with torch.no_grad():
            images = torch.rand(1, spec.input.channels, spec.input.size, spec.input.size)
            self._listening = True
            *features, logits = self.chain.walk(self.preprocessing(images).to(_dtype(network)))
            embedding = self._inputs[self._embedding] if self._embedding else None
            self._inputs, self._listening = {}, False
        if logits.ndim != 2 or logits.shape[1] != len(spec.labels):
            wide = logits.shape[1] if logits.ndim == 2 else list(logits.shape)
            raise InputError(
                f"{key}.labels",
                f"{len(spec.labels)} names for {wide} logits",
                "one name for each logit",
            )
        shapes = [tuple(value.shape[1:]) for value in (images, *features)]
        if any(len(shape) != 3 for shape in shapes):
            raise InputError(
                f"{key}.blocks",
                f"features have shapes {shapes[1:]}",
                "blocks with (C, H, W) features; what computes on tokens is cut nowhere inside",
            )
        variances = [
            cast(Tensor, network.get_submodule(layer.path).running_var) for layer, _ in self._parts
        ]
        graph_bytes, sums_bytes = self._graph_bytes(images)
        return TeacherDescription(
            spec=spec,
            shapes=cast(tuple[Shape, ...], tuple(shapes)),
            embedding=embedding.shape[1] if embedding is not None else None,
            layers=tuple(layer for layer, _ in self._parts),
            running_var=torch.cat(variances).float().clone() if variances else torch.zeros(0),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            tail_parameters=tuple(
                sum(parameter.numel() for parameter in self.chain.tail(depth).parameters())
                for depth in range(len(shapes))
            ),
            stage_bytes=tuple(map(_held_bytes, self.chain.stages)),
            graph_bytes=graph_bytes,
            sums_bytes=sums_bytes,
            sha256=self.sha256,
        )

    @property
    def storages(self) -> set[int]:
        """Addresses of parameters and buffers, which a graph saves and does not keep by itself."""
        return _storages(self.chain)

    @property
    def is_static(self) -> bool:
        """Whether questions of the same kind and shape save as much for their pullbacks: what was
        exported does; Python within a network may choose, and a compiler may have chosen."""
        return self.chain.is_exported and not self._compiled

    def _graph_bytes(self, image: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What each stage saves of one image for a pullback, its own parameters left out, and what
        statistics save besides."""
        value = self.preprocessing(image).to(_dtype(self.chain))
        plain, besides = [], []
        for stage in self.chain.stages:
            own = _storages(stage)
            self._inputs, self._listening = {}, True
            with weighing() as saved:
                value = stage(value.detach().requires_grad_())
                plain.append(sum(size for place, size in saved.items() if place not in own))
                kept = self._sums()
            together = sum(size for place, size in saved.items() if place not in own)
            besides.append(together - plain[-1])
            del kept  # until here, so that no address was taken twice
        self._inputs, self._listening = {}, False
        return tuple(plain), tuple(besides)


@contextmanager
def weighing() -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves meanwhile, by its address."""
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor),
    ):
        yield held


def load_teachers(
    specs: Sequence[TeacherSpec], weights: Mapping[str, sources.Weights]
) -> dict[str, Teacher]:
    """Load every teacher of a run, by name.

    Raises:
        InputError: the first thing that is wrong.
    """
    return {s.name: Teacher(s, f"teachers.{i}", weights[s.name]) for i, s in enumerate(specs)}


def _example(spec: TeacherSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        2, spec.input.channels, spec.input.size, spec.input.size, generator=generator
    )


def _last_linear(network: nn.Module, chain: BlockChain) -> str | None:
    """In the head; auxiliary heads that do not run are in no stage."""
    linear = [path for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    linear = [path for path in linear if chain.holds(path) and chain.place(path) == chain.depth]
    return linear[-1] if linear else None


def _batch_norms(network: nn.Module, chain: BlockChain) -> list[tuple[BatchNormLayer, Tensor]]:
    """BatchNorm layers with running statistics, by path: behind the cut their classes are gone."""
    found = []
    for path, part in network.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and chain.holds(path):
            layer = BatchNormLayer(path, part.num_features, chain.place(path) + 1)
            found.append((layer, part.running_mean.clone()))
    return found


def _tensors(stage: nn.Module) -> list[Tensor]:
    return [*stage.parameters(), *stage.buffers()]


def _storages(stage: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(stage)}


def _held_bytes(stage: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(stage))


def _dtype(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)


def _at_least_fp32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
