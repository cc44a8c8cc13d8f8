"""The runs in ConfigMaps, who runs them, and the nodes that a cluster gives them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml
from reading import ROOT, Manifest, amount, of_kind

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import load, parse
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.tuning.space import Space


@dataclass(frozen=True)
class Entrypoint:
    """What a RayJob runs."""

    job: str
    """The RayJob's name."""
    interpreter: str
    program: str
    words: tuple[str, ...]
    """All arguments."""

    def value_of(self, option: str) -> str:
        """What follows an option; nothing where it is not given."""
        at = self.words.index(option) + 1 if option in self.words else len(self.words)
        return self.words[at] if at < len(self.words) else ""


def entrypoints(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, Entrypoint]]:
    """Every RayJob, and what it runs."""
    for job in of_kind(manifests, "RayJob"):
        interpreter, program, *words = [*shlex.split(job["spec"]["entrypoint"]), "", ""]
        given = tuple(word for word in words if word)
        yield job, Entrypoint(job["metadata"]["name"], interpreter, program, given)


def configurations(manifests: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """The runs in ConfigMaps, as text."""
    for each in of_kind(manifests, "ConfigMap"):
        for file, text in each.get("data", {}).items():
            yield f"{each['metadata']['name']}/{file}", text


def runs(manifests: Sequence[Manifest]) -> Iterator[tuple[str, RunConfig]]:
    """The runs in ConfigMaps, those that load."""
    for name, text in configurations(manifests):
        try:
            yield name, parsed(text)
        except InputError:
            continue


def parsed(text: str) -> RunConfig:
    """A run from YAML, and what it searches, if it does."""
    config = parse(yaml.safe_load(text))
    if config.search is not None:
        Space(config)
    return config


def preset(name: str) -> RunConfig:
    """A preset as it stands in the repository."""
    return load(ROOT / "jobs" / "presets" / f"{name}.yaml")


def nodes(cluster: Manifest) -> list[NodeResources]:
    """The worker nodes of a cluster, as many as there may come to be."""
    found = []
    for group in cluster.get("workerGroupSpecs", []):
        has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found += [
            NodeResources(
                name=f"{group['groupName']}-{index}",
                cpus=amount(has["cpu"]),
                gpus=amount(has.get("nvidia.com/gpu", "0")),
                labels=group.get("labels", {}),
            )
            for index in range(group["maxReplicas"])
        ]
    return found
