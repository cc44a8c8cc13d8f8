"""All rules, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from reading import Manifest

Rule = Callable[[Sequence[Manifest]], Iterator[str]]

RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    """Add a function to the rules."""
    RULES[check.__name__] = check
    return check
