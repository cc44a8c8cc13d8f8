"""The networks of a run: teachers, target and generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dfka_dist.config.values import Count, Few, Label, Name, Node, Source, Task, Weight


def _grey_or_colour(channels: Any) -> Any:
    if type(channels) is int and channels not in (1, 3):
        rules = "1, which is repeated where 3 are wanted, or 3, of which the mean is taken for 1"
        raise ValueError(f"there is no rule for images of {channels} channels || {rules}")
    return channels


def _no_name_of_torch(name: str) -> str:
    """Parts of networks are kept by teacher, and torch takes no key that is an attribute."""
    from torch import nn  # not before a run is read: importing torch takes seconds

    if hasattr(nn.ModuleDict(), name):
        what = f"{name!r} is taken by torch for every network"
        raise ValueError(f"{what} || another name, such as {name}_1")
    return name


class InputSpec(Node):
    """What a network eats: square images in [0, 1], normalised channel by channel."""

    channels: Annotated[Literal[1, 3], BeforeValidator(_grey_or_colour)]
    size: Annotated[int, Field(ge=4, le=4096)]
    mean: Annotated[list[float], Field(min_length=1)] = [0.5]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.5]

    @model_validator(mode="after")
    def _one_number_or_one_per_channel(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{key} has {len(values)} numbers || one, or one a channel: {self.channels}"
                )
        return self


class TeacherSpec(Node):
    """One frozen classifier: where it comes from, what it knows, where it is cut."""

    name: Annotated[Name, AfterValidator(_no_name_of_torch)]
    source: Source
    weights: str | None = None
    arguments: dict[str, Any] = {}
    task: Task
    labels: Annotated[list[Label], Field(min_length=1)]
    blocks: Annotated[list[str], Field(min_length=1)]
    input: InputSpec


class TargetSpec(Node):
    """The network that is wanted."""

    labels: Literal["all"] | Annotated[list[Label], Field(min_length=1)] = "all"
    backbone: str = "convnet"
    arguments: dict[str, Any] = {}
    branch: Literal["last", "best"] | Count | dict[Name, Count] = "last"
    """Depth at which a teacher's branch leaves the trunk: behind the last block, where its dual
    loss is least, or as given, for all or by teacher."""
    start: str | None = None
    """A saved target to go on with: its folder; recipe distill."""
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    """What the target may hold; branches are then the best that fit."""


class GeneratorSpec(Node):
    """The group-stack generator."""

    latent: Few = 100
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Channels inside a group, as a multiple of those it is given."""
    label_scale: Weight = 1.0
    """Length of the fixed vector added to the latent for every sampled label, in standard
    deviations."""
    labels_per_image: Count = 1
    """Sampled label sets hold 1 to this many labels, all sizes equally often."""
