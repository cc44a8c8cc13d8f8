"""Entering a network on its original modules, where it cannot be exported.

A stage is a copy of the network without the parts that do not run between its two blocks. It runs
the network's own `forward`: parts in front are stubs that cost nothing and answer with idle tensors
of the right shape, the block in front of the stage answers with the feature that was given, and
when the block at its end has answered, the run is broken off. So the Python code between the parts
runs in every stage, on idle tensors until the feature comes in, and nothing has to be exported.

This is right only for a plain chain, where a block's output is all that the rest depends on. That
is proved: whatever the idle tensors hold, every stage must give bit for bit what the whole network
had there, at two batch sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dfka_dist.models.recording import (
    CannotCut,
    Recording,
    SeveralTensors,
    Sketch,
    and_above,
    merged,
    record,
)

FILLINGS = (0.0, 1.0)
"""What the idle tensors hold while a chain is proved; ordinarily the first."""


class Stub(nn.Module):
    """Stands where a part does not run; the stage around it answers through a hook."""

    def forward(self, *_arguments: object, **_named: object) -> None:
        """Nothing of its own."""


class ModuleStage(nn.Module):
    """What runs from behind one block up to the next; a copy of the network with all else left out.

    Its parameters and persistent buffers are those that are used in it. Tensors of a module that
    runs in several stages are zeros, and not saved, in the stages that do not use them.

    Args:
        network: in which this stage's parts are, and stubs for all others.
        running: paths of the parts that run here.
        entered: path of the block whose output comes in; none if the images do.
        ended: path of the block whose output goes out; none if the logits do.
        images: how the network's input looks.
        stubs: what each stub answers, call by call.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        running: frozenset[str],
        entered: str | None,
        ended: str | None,
        images: Sketch,
        stubs: Mapping[str, Sequence[Any]],
    ) -> None:
        super().__init__()
        self.network = network
        self._running = running
        self._entered, self._ended = entered, ended
        self._images, self._stubs = images, stubs

    def part(self, path: str) -> nn.Module | None:
        """The part that the whole network had at this path, if it runs in this stage."""
        return self.network.get_submodule(path) if path in self._running else None

    def forward(self, inputs: Tensor, filling: float = FILLINGS[0]) -> Tensor:
        """What lies behind the stage, for what lies in front of it, (N, ...); never in place.

        Args:
            inputs: images or features.
            filling: what the idle tensors hold; the answer does not depend on it.

        Raises:
            RuntimeError: for these values the network takes a way that was not proved.
        """
        given = inputs.clone()  # a part may work in place
        answers: dict[str, list[Any]] = {path: list(said) for path, said in self._stubs.items()}
        if self._entered is not None:
            answers[self._entered] = [given]
        images = given if self._entered is None else self._images.drawn(given, filling)
        with ExitStack() as hooks:
            for path, said in answers.items():
                self._hook(hooks, path, _answer(path, said, given, filling))
            if self._ended is not None:
                self._hook(hooks, self._ended, _break_off)
            try:
                output: Tensor = self.network(images)
            except _Reached as reached:
                return reached.output
        if self._ended is not None:
            raise RuntimeError(f"block {self._ended!r} does not run for these values")
        if self._entered is not None and answers[self._entered]:
            raise RuntimeError(f"block {self._entered!r} does not run for these values")
        return output

    def _hook(self, hooks: ExitStack, path: str, hook: Callable[..., Any]) -> None:
        handle = self.network.get_submodule(path).register_forward_hook(hook)
        hooks.callback(handle.remove)


class _Reached(BaseException):
    """The last block of a stage has answered; no error, so that no network catches it."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _break_off(_part: nn.Module, _arguments: object, output: Tensor) -> None:
    raise _Reached(output)


def _answer(
    path: str, said: list[Any], given: Tensor, filling: float
) -> Callable[[nn.Module, object, object], Any]:
    """A hook with which a stub answers its calls one after another."""

    def hook(_part: nn.Module, _arguments: object, _output: object) -> Any:
        if not said:
            raise RuntimeError(f"{path!r} runs for these values, where it did not when proved")
        return tree_map(
            lambda leaf: leaf.drawn(given, filling) if isinstance(leaf, Sketch) else leaf,
            said.pop(0),
        )

    return hook


def chained(network: nn.Module, blocks: Sequence[str], example: Tensor) -> list[ModuleStage]:
    """The stages of a network whose blocks form a plain chain, proved to be the whole.

    Args:
        network: in eval mode.
        blocks: module paths; they count in the order in which they run.
        example: (N, C, H, W) with N >= 2.

    Raises:
        SeveralTensors: something besides a block's output flows on; says which block.
        CannotCut: a block does not run once, or the network cannot be taken apart like this.
    """
    try:
        one, two = (record(network, blocks, example[:count]) for count in (1, 2))
        _check(one, two, blocks)
        stages = [_stage(network, one, two, index) for index in range(len(blocks) + 1)]
        for recording in (one, two):
            _prove(stages, recording)
    except CannotCut:
        raise
    except Exception as error:  # foreign code: it may raise anything
        raise CannotCut(f"{type(error).__name__}: {error}") from error
    return stages


def _check(one: Recording, two: Recording, blocks: Sequence[str]) -> None:
    for block in blocks:
        if one.blocks.count(block) != 1:
            raise CannotCut(f"block {block!r} runs {one.blocks.count(block)} times")
    if len(set(blocks)) < len(blocks):
        raise CannotCut("a block is named twice")
    if one.calls != two.calls:
        raise CannotCut("which parts run depends on the batch")
    for block, feature in zip(one.blocks, one.features, strict=True):
        if not isinstance(feature, Tensor):
            raise several(block)
    if not isinstance(one.logits, Tensor):
        raise CannotCut(f"the network gives a {type(one.logits).__name__}, not logits")


def _stage(network: nn.Module, one: Recording, two: Recording, index: int) -> ModuleStage:
    absent = _absent(network, one, index)
    stubs: dict[str, list[Any]] = {path: [] for path in absent if not _lies_in(path, absent)}
    for call, first, second in zip(one.calls, one.outputs, two.outputs, strict=True):
        if call.path in stubs and call.last < index:
            stubs[call.path].append(merged(first, second))
    memo: dict[int, Any] = {id(part): Stub() for part in absent.values()}
    own = copy.deepcopy(network, memo)
    _leave_idle(own, one, index)
    return ModuleStage(
        own,
        running=one.active(index),
        entered=one.blocks[index - 1] if index else None,
        ended=one.blocks[index] if index < len(one.blocks) else None,
        images=Sketch(tuple(one.images.shape), tuple(two.images.shape), one.images.dtype),
        stubs=stubs,
    )


def _absent(network: nn.Module, recording: Recording, index: int) -> dict[str, nn.Module]:
    """Parts that do not run in a stage; not those that only hold others, such as lists."""
    running = recording.active(index)
    called = {call.path for call in recording.calls}
    ever = frozenset[str]().union(*map(recording.active, range(len(recording.touched))))
    return {
        path: part
        for path, part in network.named_modules()
        if path not in running and (path in called or (path not in ever and _has_own_tensors(part)))
    }


def _has_own_tensors(part: nn.Module) -> bool:
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return bool(own)


def _lies_in(path: str, others: Mapping[str, object]) -> bool:
    return any(above in others for above in and_above(path) if above != path)


def _leave_idle(own: nn.Module, recording: Recording, index: int) -> None:
    """Make zeros, not to be saved, of tensors that a stage does not use but its code may touch."""
    called = {call.path for call in recording.calls}
    shared = {call.path for call in recording.calls if {call.first, call.last} != {index}}
    for path, part in own.named_modules():
        if path in called - shared:
            continue
        tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if f"{path}.{name}".removeprefix(".") not in recording.touched[index]:
                delattr(part, name)
                part.register_buffer(name, torch.zeros_like(tensor.detach()), persistent=False)


@torch.no_grad()
def _prove(stages: Sequence[ModuleStage], recording: Recording) -> None:
    """Every stage gives what the whole network had there, whatever the idle tensors hold."""
    values = [recording.images, *recording.features, recording.logits]
    for index, stage in enumerate(stages):
        behind = recording.blocks[index - 1] if index else None
        for filling in FILLINGS:
            try:
                said = stage(values[index], filling)
            except Exception as error:  # foreign code
                where = "with images" if behind is None else f"behind block {behind!r}"
                raise CannotCut(f"entered {where}: {error}") from error
            if not torch.equal(said, values[index + 1]):
                raise CannotCut("it is not the same twice") if behind is None else several(behind)


def several(block: str) -> SeveralTensors:
    """Something besides this block's output flows on."""
    return SeveralTensors(f"behind block {block!r} there are several tensors")
