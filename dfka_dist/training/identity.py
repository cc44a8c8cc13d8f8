"""Whether two starts are of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """What one configuration says and another says otherwise.

    Args:
        key: dotted.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"is {self.now} and was {self.before} when the run began"


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Between two trees of plain values, in the order of their keys."""
    then, here = (dict(_flat(each)) for each in (before, now))
    for key in sorted(then.keys() | here.keys()):
        if then.get(key) != here.get(key):
            return Difference(key, then.get(key), here.get(key))
    return None


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inner: Iterator[tuple[Any, Any]]
    if isinstance(tree, Mapping):
        inner = iter(tree.items())
    elif isinstance(tree, list) and any(isinstance(each, Mapping) for each in tree):
        inner = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in inner:
        yield from _flat(value, f"{path}.{key}".lstrip("."))
