"""The dual generator T and the `TargetNet` that it becomes: one trunk, one branch per teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfka_dist.config import Count, InputSpec, Node, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models import sources
from dfka_dist.models.backbones import TRUNKS
from dfka_dist.models.filters import Shape, TeacherFilter
from dfka_dist.models.huggingface import HUB_ID
from dfka_dist.models.preprocessing import Preprocessing, channels_last
from dfka_dist.models.splitting import BlockChain, cut
from dfka_dist.version import __version__


def remembered(teacher: TeacherSpec) -> TeacherSpec:
    """What a target keeps of a teacher: all but its weights, and where a local folder lies.

    Its name stays, as in the identity of a run.
    """
    kind, _, place = teacher.source.partition(":")
    name = PurePosixPath(place).name
    local = kind == "hf" and name and not HUB_ID.fullmatch(place)
    source = f"hf:{name}" if local else teacher.source
    return teacher.model_copy(update={"weights": None, "source": source})


class BranchPoint(Node):
    """Where a teacher's branch leaves the trunk, and which of its labels are kept."""

    teacher: Annotated[TeacherSpec, AfterValidator(remembered)]
    depth: Count
    """Of the trunk; its last is B, behind the last block."""
    entry: Count
    """Depth at which the teacher's own blocks go on."""
    shape: Shape
    """(C, H, W) of the teacher's feature there."""
    adapt: bool = False
    """Whether the filter has its 1x1 convolution even between equal shapes."""
    labels: list[str]


class Architecture(Node):
    """Everything but the weights; `config.json` of a saved target."""

    dfka_dist: str
    labels: list[str]
    input: InputSpec
    backbone: str
    arguments: dict[str, Any]
    branches: list[BranchPoint]

    @property
    def code(self) -> list[str]:
        """Modules of others that its parts are made by."""
        modules = [branch.teacher.source.partition(":")[0] for branch in self.branches]
        return [m for m in dict.fromkeys(modules) if m not in ("builtin", "hf")]

    @model_validator(mode="after")
    def _every_label_has_a_branch(self) -> Self:
        kept = {label for branch in self.branches for label in branch.labels}
        if not kept or kept != set(self.labels):
            raise ValueError("the branches' labels are not those of the target")
        if any(set(branch.labels) - set(branch.teacher.labels) for branch in self.branches):
            raise ValueError("a branch keeps labels that its teacher does not know")
        if len({branch.teacher.name for branch in self.branches}) < len(self.branches):
            raise ValueError("two branches have the same name")
        return self


class DualGenerator(nn.Module):
    """Blocks T^1..T^p from random weights, and a filter per teacher at its branch depth.

    `forward` gives what each teacher's remaining blocks and head shall eat, {teacher: (N, *shape)}.
    """

    def __init__(self, design: Architecture) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(design.input)
        deepest = max(branch.depth for branch in design.branches)
        blocks = trunk(design.backbone, design.arguments, design.input)
        if deepest > len(blocks):
            raise InputError(
                "target.branch",
                f"is {deepest}",
                f"1 to {len(blocks)}, the blocks of the backbone",
            )
        self.blocks = blocks[:deepest]
        shapes = trunk_shapes(self.blocks, design.input)
        self.depths = {branch.teacher.name: branch.depth for branch in design.branches}
        self.filters = nn.ModuleDict(
            {
                b.teacher.name: TeacherFilter(source=shapes[b.depth], wanted=b.shape, adapt=b.adapt)
                for b in design.branches
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Filtered features of images (N, C, H, W) in [0, 1]."""
        value = channels_last(self.preprocessing(images))
        features = [value]
        for block in self.blocks:
            features.append(block(features[-1]))
        return {
            name: self.filters[name](features[depth]).float() for name, depth in self.depths.items()
        }


class TargetNet(nn.Module):
    """The network that was wanted: the dual generator as a trunk, then the teachers' own tails."""

    def __init__(self, design: Architecture) -> None:
        super().__init__()
        self.design = design
        self.labels = list(design.labels)
        self.trunk = DualGenerator(design)
        self.tails = nn.ModuleDict(
            {b.teacher.name: _tail(b, i) for i, b in enumerate(design.branches)}
        )
        self.kept = {
            b.teacher.name: [b.teacher.labels.index(label) for label in b.labels]
            for b in design.branches
        }
        self._heard = {
            b.teacher.name: self.kept[b.teacher.name]
            for b in design.branches
            if b.teacher.task == "multi_label"
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{teacher: logits} of images (N, C, H, W) in [0, 1], of any size: (N, kept labels) of a
        multi-label teacher, (N, K) of a single-label one, whose labels are sure of each other."""
        return self.judge(self.trunk(images))

    def judge(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{teacher: logits} as in `forward`: what the tails say of the trunk's features."""
        said = {name: tail(features[name]) for name, tail in self.tails.items()}
        return {
            name: logits[:, self._heard[name]] if name in self._heard else logits
            for name, logits in said.items()
        }

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """{teacher: (N, kept labels)}. Of a single-label teacher they do not sum to one where not
        all its labels are kept: an image may show none of them."""
        found = {}
        for name, own in self(images).items():
            single = name not in self._heard
            found[name] = (
                own.float().softmax(1)[:, self.kept[name]] if single else own.float().sigmoid()
            )
        return found

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities (N, C) in the order of `labels`; the mean where two teachers know one."""
        sums = torch.zeros(len(images), len(self.labels), device=images.device)
        voices = torch.zeros(len(self.labels), device=images.device)
        found = self.probabilities(images)
        for branch in self.design.branches:
            columns = [self.labels.index(label) for label in branch.labels]
            sums[:, columns] += found[branch.teacher.name]
            voices[columns] += 1
        return sums / voices

    def parameter_count(self) -> int:
        """Number of parameters, tails included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, the same bytes for the same network."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(
            self.design.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        state = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()
        }
        save_file(state, place / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path, allow_code: Sequence[str] = ()) -> Self:
        """Load a saved target in eval mode; no teacher's file is needed.

        Args:
            allow_code: modules from which parts of the network may be imported.

        Raises:
            InputError: a file is missing or broken, or a part needs a module that is not allowed.
        """
        place = Path(folder)
        design = _read_design(place / "config.json")
        for module in design.code:
            if module not in allow_code:
                raise InputError(
                    "allow_code", f"{place} needs code from {module}", f'allow_code=["{module}"]'
                )
        try:
            net = cls(design)
        except (RuntimeError, ValueError, TypeError) as error:
            raise _no_target(place / "config.json") from error
        net._load(place / "model.safetensors")
        return net.eval()

    def _load(self, path: Path) -> None:
        try:
            state = load_file(path)
            self.load_state_dict(state)
        except (OSError, SafetensorError) as error:
            raise InputError(
                "--target-net", f"{path} cannot be read: {error}", "an intact saved target"
            ) from error
        except RuntimeError as error:
            raise InputError(
                "--target-net", f"{path} does not fit its config.json", "an intact saved target"
            ) from error


def version() -> str:
    """Of this package."""
    return __version__


def _shape(features: Tensor) -> Shape:
    _, channels, height, width = features.shape
    return channels, height, width


def trunk(backbone: str, arguments: Mapping[str, Any], spec: InputSpec) -> nn.ModuleList:
    """The blocks T^1..T^B of a backbone, with random weights.

    Raises:
        InputError: there is none of that name, or it does not take the arguments.
    """
    if backbone not in TRUNKS:
        raise InputError(
            "target.backbone", f"no backbone {backbone!r}", f"one of {', '.join(TRUNKS)}"
        )
    try:
        return TRUNKS[backbone](channels=spec.channels, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "target.arguments", str(error), f"what the backbone {backbone} takes"
        ) from error


@torch.no_grad()
def trunk_shapes(blocks: nn.ModuleList, spec: InputSpec) -> list[Shape]:
    """(C, H, W) at depths 0..B of a trunk; nothing in it moves."""
    value = torch.zeros(1, spec.channels, spec.size, spec.size)
    shapes = [_shape(value)]
    was_training = blocks.training
    blocks.eval()
    for block in blocks:
        value = block(value)
        shapes.append(_shape(value))
    blocks.train(was_training)
    return shapes


def _tail(branch: BranchPoint, index: int) -> nn.Module:
    whole = _cut(branch.teacher.model_dump_json(), f"branches.{index}.teacher")
    return copy.deepcopy(whole.tail(branch.entry))


@lru_cache(maxsize=8)
def _cut(teacher: str, key: str) -> BlockChain:
    """A teacher's architecture, with weights that mean nothing: a run makes many targets with the
    same tails, and cutting takes half a second."""
    spec = TeacherSpec.model_validate_json(teacher)
    # The weights come from elsewhere: building must not disturb anybody's random numbers.
    with torch.random.fork_rng(devices=[]):
        network = sources.build(spec, key).eval()
        example = torch.rand(2, spec.input.channels, spec.input.size, spec.input.size)
    return cut(network, spec.blocks, example, key)


def _read_design(path: Path) -> Architecture:
    try:
        return Architecture.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "--target-net", f"{path} cannot be read: {error.strerror}", "a saved target"
        ) from error
    except (ValidationError, ValueError) as error:
        raise _no_target(path) from error


def _no_target(path: Path) -> InputError:
    return InputError(
        "--target-net", f"{path} describes no target", "the config.json that was saved"
    )
