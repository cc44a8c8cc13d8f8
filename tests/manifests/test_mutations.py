"""The rules can fail: each manifest of mutations.yaml has one thing wrong, and a rule says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reading
import rules
import schemas
import yaml

Manifest = dict[str, Any]

MUTATIONS = [
    row
    for file in sorted(Path(__file__).with_name("mutations").glob("*.yaml"))
    for row in yaml.safe_load(file.read_text(encoding="utf-8"))
]
"""One thing each that is wrong: of `of` in an overlay (dfka-amalgamate in cpu, where nothing is
said), `value` is put at `path`, or `swap` replaces a part of the text there, or what is there is
taken away. `rule` sees it."""
SHORT = {
    "HEAD": "spec.rayClusterSpec.headGroupSpec.template.spec",
    "WORKERS": "spec.rayClusterSpec.workerGroupSpecs",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["what"])
def test_a_rule_sees_that(
    rendered: Callable[[str], list[Manifest]], mutation: dict[str, Any]
) -> None:
    if mutation["rule"] == "fits_kuberays_schemas" and schemas.kuberay_folder() is None:
        pytest.skip(schemas.HOW)
    manifests = rendered(mutation.get("overlay", "cpu"))
    kind, _, name = mutation.get("of", "RayJob/dfka-amalgamate").partition("/")
    given = next(e for e in reading.of_kind(manifests, kind) if e["metadata"]["name"] == name)
    rule = rules.RULES[mutation["rule"]]
    assert list(rule(manifests)) == []

    _change(given, mutation)

    assert list(rule(manifests)) != []


def test_every_rule_is_seen_to_fail() -> None:
    assert rules.RULES.keys() == {each["rule"] for each in MUTATIONS}


def _change(tree: Any, mutation: dict[str, Any]) -> None:
    path = mutation["path"]  # a list where a key has a dot
    if isinstance(path, str):
        first, *rest = path.split(".")
        path = [*SHORT.get(first, first).split("."), *rest]
    *above, last = (int(part) if part.isdecimal() else part for part in path)
    for part in above:
        tree = tree[part]
    if "value" in mutation:
        tree[last] = mutation["value"]
    elif "swap" in mutation:
        old, new = mutation["swap"]
        assert old in tree[last]
        tree[last] = tree[last].replace(old, new)
    else:
        del tree[last]
