"""What a network does with a batch: which parts run between which blocks, with which tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class CannotCut(Exception):
    """Why a network cannot be entered behind these blocks, in a few words."""


class SeveralTensors(CannotCut):
    """A block is not all that the rest of the network depends on."""


@dataclass(frozen=True)
class Sketch:
    """A tensor of which only the looks are known, at batch sizes 1 and 2."""

    one: tuple[int, ...]
    two: tuple[int, ...]
    dtype: torch.dtype

    def drawn(self, like: Tensor, filling: float) -> Tensor:
        """A tensor of such looks at the batch size, on the device and in the float of `like`."""
        more = len(like) - 1
        shape = [one + (two - one) * more for one, two in zip(self.one, self.two, strict=True)]
        dtype = like.dtype if self.dtype.is_floating_point else self.dtype
        return torch.full(shape, filling, dtype=dtype, device=like.device)


@dataclass(frozen=True)
class Call:
    """One call of the part at `path`, entered in stage `first` and left in stage `last`."""

    path: str
    first: int
    last: int


@dataclass
class Recording:
    """One run of a network; stage s ends with the s-th block (from 0), the head is the last one."""

    images: Tensor
    blocks: list[str]
    """In the order in which they gave their outputs."""
    features: list[Any]
    """What each block gave."""
    logits: Any
    calls: list[Call]
    outputs: list[Any]
    """What each call gave, with a `Sketch` of this batch size for each tensor."""
    touched: list[set[str]]
    """Per stage: names of the parameters and buffers that a function of torch was given."""

    def active(self, stage: int) -> frozenset[str]:
        """Paths of the parts that run in a stage, in part or as a whole, and of their parents."""
        paths = {call.path for call in self.calls if call.first <= stage <= call.last}
        paths |= {name.rpartition(".")[0] for name in self.touched[stage]}
        return frozenset(above for path in paths for above in and_above(path))


def record(network: nn.Module, blocks: Sequence[str], images: Tensor) -> Recording:
    """Run a network on images (N, C, H, W), N being 1 or 2, and watch; without gradients."""
    recorder = _Recorder(network, blocks)
    modules = dict(network.named_modules())
    with torch.no_grad(), ExitStack() as hooks, recorder:
        for path, part in modules.items():
            enter, leave = partial(recorder.enter, path), partial(recorder.leave, path)
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        network(images.clone())
    features: list[Any] = []
    # Once more, for a network that is watched so closely may choose other kernels.
    with torch.no_grad(), ExitStack() as hooks:
        for block in blocks:
            hook = partial(_keep, features)
            hooks.callback(modules[block].register_forward_hook(hook).remove)
        logits = network(images.clone())
    return Recording(
        images=images,
        blocks=recorder.passed,
        features=features,
        logits=logits,
        calls=recorder.calls,
        outputs=recorder.outputs,
        touched=recorder.touched,
    )


def _keep(features: list[Any], _part: nn.Module, _arguments: object, output: Any) -> None:
    features.append(output.clone() if isinstance(output, Tensor) else output)


class _Recorder(TorchFunctionMode):
    """Sees the parts through hooks, and the tensors in the arguments of torch's functions."""

    def __init__(self, network: nn.Module, blocks: Sequence[str]) -> None:
        super().__init__()
        self._blocks = frozenset(blocks)
        self._open: list[tuple[str, int]] = []
        self._names: dict[int, list[str]] = {}
        for group in (network.named_parameters, network.named_buffers):
            for name, tensor in group(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append(name)
        self.passed: list[str] = []
        self.calls: list[Call] = []
        self.outputs: list[Any] = []
        self.touched: list[set[str]] = [set()]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            names = self._names.get(id(leaf), [])
            inside = self._open[-1][0] if self._open else ""
            # Of a tensor with several names, the one counts whose owner is running.
            own = [name for name in names if name.rpartition(".")[0] == inside]
            self.touched[-1].update(own or names)
        return func(*args, **(kwargs or {}))

    def enter(self, path: str, _part: nn.Module, _arguments: object) -> None:
        self._open.append((path, len(self.passed)))

    def leave(self, path: str, _part: nn.Module, _arguments: object, output: Any) -> None:
        opened, first = self._open.pop()
        while opened != path:  # left by an exception that somebody caught
            opened, first = self._open.pop()
        self.calls.append(Call(path, first, len(self.passed)))
        self.outputs.append(tree_map(_sketched, output))
        if path in self._blocks:
            self.passed.append(path)
            self.touched.append(set())


def _sketched(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return Sketch(tuple(leaf.shape), tuple(leaf.shape), leaf.dtype)
    return leaf


def merged(one: Any, two: Any) -> Any:
    """What was given at batch sizes 1 and 2, as a sketch for any batch size.

    Raises:
        ValueError: they differ in more than sizes.
    """
    return tree_map(_merged, one, two)


def _merged(one: Any, two: Any) -> Any:
    if not isinstance(one, Sketch):
        return one
    if not isinstance(two, Sketch) or len(one.one) != len(two.one):
        raise ValueError("what a part gives depends on the batch size in more than its size")
    return Sketch(one.one, two.one, one.dtype)


def and_above(path: str) -> Iterator[str]:
    """A path, those of the parts around it, and the network's own, which is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
