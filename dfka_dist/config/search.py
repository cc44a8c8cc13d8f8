"""What a sweep looks for, and how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dfka_dist.config.values import Count, Few, Node, Seconds

Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
Choice = bool | int | float | str | None


class Range(Node):
    """The values of one key: between two bounds, or some."""

    linear: Bounds | None = None
    log: Bounds | None = None
    """Where every factor counts alike, as of most loss weights."""
    choices: Annotated[list[Choice], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("linear", "log", "choices") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "is no range || one of linear: [LOW, HIGH], log: [...], choices: [...]"
            )
        if self.bounds is not None:
            low, high = self.bounds
            if low >= high:
                raise ValueError(f"from {low:g} to {high:g} is empty || low before high")
            if self.log is not None and low <= 0:
                raise ValueError(f"log begins at {low:g} || more than 0, or linear")
        return self

    @property
    def bounds(self) -> list[float] | None:
        """The lowest and the highest; None for choices."""
        return self.linear or self.log


class SearchSpec(Node):
    """A sweep: `jobs/tune.py`."""

    space: Annotated[dict[str, Range], Field(min_length=1)]
    """By dotted key, any number of the run; not of teachers, serving, run and evaluations, for all
    trials share the pool."""
    trial: dict[str, Any] = {}
    """What every trial has instead of the run's own, by dotted key: fewer steps."""
    trials: Count | None = None
    """At most, pilots among them; 20 if `seconds` are not given either. A grid has all its points
    and the pilots, and takes none."""
    seconds: Seconds | None = None
    """At most, of all starts together; trials that run then are stopped."""
    pilots: Annotated[int, Field(ge=1, le=1000)] = 3
    """Trials that run to their end before all others, the first with the run's own weights, the
    rest drawn. Equal parts of what they synthesize are the probe set on which all are compared."""
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials that are behind at their moments (`training.candidates`)."""
    reduction: Annotated[int, Field(ge=2, le=100)] = 2
    """Of asha: one of how many goes on."""
    concurrent: Few | None = None
    """Trials at once; without it as many as there is room for."""

    @model_validator(mode="after")
    def _has_room_for_pilots(self) -> Self:
        if self.algorithm == "grid" and self.trials is not None:
            raise ValueError(
                "trials are given for a grid, which has all its points || none, or seconds"
            )
        if self.most is not None and self.most < self.pilots and self.algorithm != "grid":
            raise ValueError(f"{self.most} trials are fewer than {self.pilots} pilots || more")
        return self

    @property
    def most(self) -> int | None:
        """Trials at most; None where only seconds count."""
        return 20 if self.trials is None and self.seconds is None else self.trials
