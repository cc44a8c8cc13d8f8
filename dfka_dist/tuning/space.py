"""What a sweep looks for: points of a space of configurations."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dfka_dist.config import Node, Range, RunConfig, SearchSpec
from dfka_dist.errors import InputError
from dfka_dist.loading import parse

Point = dict[str, Any]
"""A value for every key of the space, by dotted key."""

SHARED = ("teachers", "serving", "run", "evaluations", "search")
"""Sections that are the same for all trials."""
FIXED = (
    "target.labels",
    "target.start",
    "training.archive",
    "training.checkpoint",
    "training.node_labels",
    "training.worker_cpus",
    "training.worker_gpus",
    "training.workers",
)
"""Keys, or what is below them, without which trials could not be compared, would write to the same
place, or would take other room than was planned."""
_APART: dict[str, Any] = {"training.archive": None, "training.checkpoint.every": 0}
"""Of every trial: it is short, and begins anew if it is interrupted."""
_DEPTHS = "training.branch_steps"


class Space:
    """The points that a run's `search` describes.

    Raises:
        InputError: a key cannot be searched, or a bound or a choice is none of its values.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.search is None:
            raise InputError("search", "is missing", "space: {KEY: {log: [LOW, HIGH]}, ...}")
        self.spec: SearchSpec = config.search
        self._config = config
        self._tree = config.model_dump(mode="json") | {"search": None}
        for section in ("space", "trial"):
            for key in getattr(self.spec, section):
                self._refuse_shared(section, key)
        for key, value in self.spec.trial.items():
            self._tried("trial", key, value)
        self._whole = {key: self._checked(key, own) for key, own in self.spec.space.items()}
        if self.spec.algorithm == "grid" and any(r.bounds for r in self.spec.space.values()):
            raise InputError("search.algorithm", "a grid has no ranges", "choices, or random")
        for point in [self.own, *(self.grid() if self.spec.algorithm == "grid" else [])]:
            self._refuse_impossible(point)

    @property
    def own(self) -> Point:
        """The run's own values."""
        return {key: _value(self._tree, "space", key) for key in self.spec.space}

    @property
    def name(self) -> str:
        """Of the run."""
        return self._config.run.name

    @property
    def seed(self) -> int:
        """Of the run."""
        return self._config.run.seed

    @property
    def identity(self) -> dict[str, Any]:
        """What may not differ when a sweep goes on."""
        whole = self.spec.model_dump(mode="json")
        return {key: whole[key] for key in ("space", "trial", "pilots", "algorithm")}

    def run(self, point: Point) -> RunConfig:
        """The whole run with the values of a point, without its search, and without the archive
        of the run as it is, which may be there.

        Raises:
            InputError: they do not go together.
        """
        return self._with(point).without_archive()

    def trial(self, point: Point) -> RunConfig:
        """The trial of a point: the run with what all trials have instead of its own, and without
        targets at other depths than the one that is compared.

        Raises:
            InputError: its values do not go together, in the trial or in the whole run.
        """
        self._with(point)
        own = self.spec.trial | _APART | point
        return self._with(own if self._chooses_depths(own) else {_DEPTHS: 0} | own)

    def samples(self) -> Iterator[Point]:
        """The run's own values, and these with each choice of a key that says what the target is
        made of."""
        yield self.own
        for key, own in self.spec.space.items():
            if key.startswith("target."):
                yield from (self.own | {key: value} for value in own.choices or [])

    def is_whole(self, key: str) -> bool:
        """Whether a range takes whole numbers only."""
        return self._whole[key]

    def draws(self) -> Iterator[Point]:
        """Points without end, drawn independently; the same every time."""
        source = random.Random(self.seed)
        while True:
            yield {key: self._drawn(key, own, source) for key, own in self.spec.space.items()}

    def pilots(self) -> list[Point]:
        """The run's own values and drawn ones that can be a run, each once; fewer where there are
        not as many."""
        drawn = itertools.islice(self.draws(), 100 * self.spec.pilots)
        found = [self.own]
        for point in drawn:
            if len(found) == self.spec.pilots:
                break
            if point not in found and self._is_possible(point):
                found.append(point)
        return found

    def grid(self) -> list[Point]:
        """Every point of a space of choices."""
        choices = [unique(own.choices or []) for own in self.spec.space.values()]
        return [
            dict(zip(self.spec.space, values, strict=True))
            for values in itertools.product(*choices)
        ]

    def _chooses_depths(self, values: Mapping[str, Any]) -> bool:
        """Whether a run with these values needs targets at several depths to choose from."""
        target = self._tree["target"]
        branch = values.get("target.branch", target["branch"])
        most = values.get("target.max_parameters", target["max_parameters"])
        return branch == "best" or most is not None

    def _drawn(self, key: str, own: Range, source: random.Random) -> Any:
        if own.bounds is None:
            assert own.choices
            return source.choice(own.choices)
        low, high = own.bounds
        if own.log is not None:
            value = math.exp(source.uniform(math.log(low), math.log(high)))
        else:
            value = source.uniform(low, high)
        return round(value) if self._whole[key] else min(max(value, low), high)

    def _checked(self, key: str, own: Range) -> bool:
        """Whether its numbers are whole."""
        now = _value(self._tree, "space", key)
        if isinstance(now, dict | list):
            what = f"is a {'section' if isinstance(now, dict) else 'list'}"
            raise InputError(f"search.space.{key}", what, "a key with one value")
        if own.bounds is None:
            for value in own.choices or []:
                self._tried("space", key, value)
            return False
        if isinstance(now, bool) or not isinstance(now, int | float | None):
            raise InputError(f"search.space.{key}", f"{now!r} is no number", "choices for it")
        whole = all(v == int(v) for v in own.bounds) and not self._takes(key, own.bounds[0])
        for value in own.bounds:
            self._tried("space", key, int(value) if whole else value)
        return whole

    def _takes(self, key: str, value: Any) -> bool:
        try:
            self._tried("space", key, value)
        except InputError:
            return False
        return True

    def _refuse_impossible(self, point: Point) -> None:
        try:
            self.trial(point)
        except InputError as error:
            values = ", ".join(f"{key} {value}" for key, value in point.items())
            what = f"{values} cannot be a run: {error.key} {error.what}"
            raise InputError("search.space", what, error.remedy) from None

    def _is_possible(self, point: Point) -> bool:
        try:
            self.trial(point)
        except InputError:
            return False
        return True

    def _tried(self, section: str, key: str, value: Any) -> None:
        try:
            if section == "space":
                self._with({key: value})  # as best.yaml has it
            self._with(self.spec.trial | {key: value})
        except InputError as error:
            what = f"{value!r} is none of its values: {error.key} {error.what}"
            raise InputError(f"search.{section}.{key}", what, error.remedy) from None

    def _refuse_shared(self, section: str, key: str) -> None:
        part = key.partition(".")[0]
        if part in SHARED or any(key == own or key.startswith(f"{own}.") for own in FIXED):
            what = f"{part if part in SHARED else key} is the same for all trials"
            remedy = "a key of losses, training or generator"
            raise InputError(f"search.{section}.{key}", what, remedy)
        _value(self._tree, section, key)
        if section == "trial" and self._is_section(key):
            remedy = f"its keys one by one, dotted: {key}.KEY: VALUE"
            raise InputError(f"search.{section}.{key}", "is a section", remedy)

    def _is_section(self, key: str) -> bool:
        """Whether a key has keys of its own, which `search.trial` would all replace at once."""
        place: Any = self._config
        for part in key.split("."):
            place = getattr(place, part) if isinstance(place, Node) else place[part]
        return isinstance(place, Node)

    def _with(self, values: Mapping[str, Any]) -> RunConfig:
        tree = copy.deepcopy(self._tree)
        for key, value in values.items():
            above, _, last = key.rpartition(".")
            place = _value(tree, "trial", above) if above else tree
            if not isinstance(place, dict):
                raise InputError(key, f"{above} is replaced by {place!r}", "one of the two keys")
            place[last] = copy.deepcopy(value)
        return parse(tree)


def unique(values: Sequence[Any]) -> list[Any]:
    """Each once; 1 and true are two."""
    return list({(type(value), value): value for value in values}.values())


def _value(tree: Mapping[str, Any], section: str, key: str) -> Any:
    """What stands at a dotted key that a section of the search names.

    Raises:
        InputError: there is no such key.
    """
    place: Any = tree
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            known = list(place) if isinstance(place, Mapping) else []
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else "a dotted key of the run"
            raise InputError(f"search.{section}.{key}", "unknown key", remedy)
        place = place[part]
    return place
