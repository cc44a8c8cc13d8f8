"""Cutting a network into blocks and a head, so that it can be entered at any depth.

The cut is PyTorch's own (`torch.distributed.pipelining`); where that fails, blocks that form a
plain chain are entered on the original modules (`chaining`). Before anybody relies on it, the cut
network is proved equal to the whole one at two batch sizes.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.export.unflatten import InterpreterModule

from dfka_dist.errors import InputError
from dfka_dist.models.chaining import ModuleStage, chained
from dfka_dist.models.recording import CannotCut, SeveralTensors

log = logging.getLogger(__name__)


class BlockChain(nn.Module):
    """A network as B blocks and a head; depth b lies behind block b, depth 0 is the input."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    @property
    def depth(self) -> int:
        """B, the number of blocks."""
        return len(self.stages) - 1

    @property
    def is_exported(self) -> bool:
        """Whether no stage runs the network's own Python."""
        return not any(isinstance(stage, ModuleStage) for stage in self.stages)

    def walk(self, inputs: Tensor, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """From what lies at depth `start`: what lies at depths start+1..B, and the logits; or no
        further than to depth `stop`."""
        value = inputs
        for stage in list(self.stages)[start:stop]:
            value = stage(value)
            yield value

    def forward(self, inputs: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits (N, K) for what lies at depth `start`, or what lies at depth `stop`."""
        *_, last = self.walk(inputs, start, stop)
        return last

    def keep(self, stages: range) -> None:
        """Let go of all other stages; what is left answers under the same numbers."""
        for index in range(len(self.stages)):
            if index not in stages:
                self.stages[index] = nn.Identity()

    def tail(self, depth: int) -> nn.Sequential:
        """The blocks behind `depth` and the head, as one network."""
        return nn.Sequential(*list(self.stages)[depth:])

    def find(self, path: str) -> nn.Module:
        """The part that the whole network had at this module path.

        Raises:
            KeyError: no stage holds it.
        """
        for stage in self.stages:
            part = _part(stage, path)
            if part is not None:
                return part
        raise KeyError(path)

    def holds(self, path: str) -> bool:
        """Whether the part at this module path is in any stage: what never runs is in none."""
        try:
            self.find(path)
        except KeyError:
            return False
        return True

    def place(self, path: str) -> int:
        """Index of the stage that holds this module path."""
        part = self.find(path)
        return next(
            i for i, stage in enumerate(self.stages) if any(part is m for m in stage.modules())
        )


def cut(network: nn.Module, blocks: Sequence[str], example: Tensor, key: str) -> BlockChain:
    """Cut behind each block; they count in the order in which they run.

    Args:
        network: in eval mode, weights loaded.
        blocks: module names whose outputs end a block.
        example: (N, C, H, W) input with N >= 2.
        key: where the teacher stands in the configuration, for errors.

    Raises:
        InputError: a block does not exist, or the network cannot be cut there.
    """
    known = dict(network.named_modules())
    for block in blocks:
        if block not in known:
            raise InputError(
                f"{key}.blocks", f"no block is called {block!r}", f"some of {_choices(network)}"
            )
    try:
        return _exported(network, blocks, example)
    except CannotCut as error:
        refused = error
    try:
        chain = _proved(chained(network, blocks, example), network, example)
    except CannotCut as error:
        # The export only counts the blocks behind which there are several; the chain names them.
        both = isinstance(error, SeveralTensors) and isinstance(refused, SeveralTensors)
        reasons = [error] if both else [error, refused]
        raise _uncuttable(key, reasons) from refused
    log.info("%s is entered on its original modules; exported: %s", key, _short(refused))
    return chain


def _part(stage: nn.Module, path: str) -> nn.Module | None:
    if isinstance(stage, ModuleStage):
        return stage.part(path)
    try:
        return stage.get_submodule(path)
    except AttributeError:
        return None


def _exported(network: nn.Module, blocks: Sequence[str], example: Tensor) -> BlockChain:
    """Cut by `torch.distributed.pipelining`; the network is left as it was."""
    parts = [network.get_submodule(block) for block in blocks]
    before = [dict(vars(part)) for part in parts]
    try:
        with warnings.catch_warnings(), _uninterrupted():
            warnings.simplefilter("ignore")
            pipe = pipeline(network, (example,), split_spec=dict.fromkeys(blocks, SplitPoint.END))
    except Exception as error:  # torch.export has no common error of its own
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outermost says the same of every network
            cause = cause.__cause__
        raise CannotCut(str(cause)) from error
    finally:
        for part, attributes in zip(parts, before, strict=True):
            _unwrap(part, attributes)
    if pipe.num_stages != len(blocks) + 1:
        raise CannotCut(f"{pipe.num_stages} stages came out for {len(blocks)} blocks and a head")
    stages = [pipe.get_stage_module(index) for index in range(pipe.num_stages)]
    for depth, stage in enumerate(stages[1:], 1):
        assert isinstance(stage, fx.GraphModule)
        if sum(node.op == "placeholder" for node in stage.graph.nodes) != 1:
            raise SeveralTensors(f"behind block {depth} there are several tensors")
    _generate_code(stages)
    return _proved(stages, network, example)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """No garbage is collected: an export records whatever happens to tensors meanwhile, and so what
    the finalisers of others do (DeepSpeed's engines)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _generate_code(stages: Sequence[nn.Module]) -> None:
    """Run what was exported by its generated code, where it would be interpreted node by node."""
    for part in (part for stage in stages for part in stage.modules()):
        if isinstance(part, InterpreterModule):
            part._run_with_interpreter = False


def _unwrap(part: nn.Module, before: dict[str, object]) -> None:
    """Take away the `forward` with which the cutter marks the end of a block."""
    for name in ("forward", "_orig_forward"):
        vars(part).pop(name, None)
        if name in before:
            vars(part)[name] = before[name]


@torch.no_grad()
def _proved(stages: Sequence[nn.Module], network: nn.Module, example: Tensor) -> BlockChain:
    """The chain of these stages, if it is the whole network at two batch sizes."""
    for batch in (example, example[:1]):
        whole, value = network(batch.clone()), batch.clone()
        try:
            for depth, stage in enumerate(stages, 1):
                value = stage(value)
                if not isinstance(value, Tensor):
                    raise SeveralTensors(f"behind block {depth} there are several tensors")
        except RuntimeError as error:
            raise CannotCut(f"at batch size {len(batch)}: {error}") from error
        if not isinstance(whole, Tensor) or not torch.equal(value, whole):
            raise CannotCut(f"cut it differs from the whole one at batch size {len(batch)}")
    return BlockChain(stages)


def _uncuttable(key: str, reasons: Sequence[Exception]) -> InputError:
    return InputError(
        f"{key}.blocks",
        f"this network cannot be cut there: {'; '.join(map(_short, reasons))}",
        "blocks between which one tensor flows",
    )


def _short(reason: Exception) -> str:
    """The first line of an error, without the full stop."""
    lines = str(reason).strip().splitlines() or ["the export failed"]
    return lines[0][:200].rstrip(". ")


def _choices(network: nn.Module) -> str:
    """Module names a user may have meant: children, and the outermost parts that come in rows.

    Where there are no rows, grandchildren if children are few.
    """
    names = [name for name, _ in network.named_modules() if name and name.count(".") <= 1]
    top = [name for name in names if "." not in name]
    row = _outermost_row(network)
    shown = [*top, *row] if row or len(top) > 2 else names
    return ", ".join(dict.fromkeys(shown[:40]))


def _outermost_row(network: nn.Module) -> list[str]:
    """Names of composite parts of a list or a sequence, those with the fewest dots."""
    row = [
        f"{path}.{name}"
        for path, part in network.named_modules()
        if path and isinstance(part, nn.ModuleList | nn.Sequential)
        for name, inner in part.named_children()
        if any(True for _ in inner.children())
    ]
    least = min((name.count(".") for name in row), default=0)
    return [name for name in row if name.count(".") == least]
