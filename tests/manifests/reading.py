"""What stands in rendered manifests: clusters, pods and containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("cpu", "gpu", "autoscaling", "kueue")
IN_IMAGE = "/app/"
"""Where the image has the repository."""

_UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}


def amount(quantity: str | int | float) -> float:
    """A quantity of Kubernetes as a number: 250m is 0.25, 1Gi is 2 ** 30."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert found is not None, quantity
    return float(found[1]) * _UNITS[found[2]]


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> Iterator[Manifest]:
    """The objects of these kinds."""
    return (each for each in manifests if each["kind"] in kinds)


def clusters(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every description of a Ray cluster, a job's too, with the name of whose it is."""
    for each in of_kind(manifests, "RayCluster", "RayJob"):
        yield each["metadata"]["name"], cluster_of(each)


def cluster_of(owner: Manifest) -> Manifest:
    """The description of a Ray cluster that a RayCluster is, or a RayJob has."""
    spec: Manifest = owner["spec"]
    return spec if owner["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(cluster: Manifest) -> list[Manifest]:
    """Head and worker groups of a cluster."""
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]


def head(owner: Manifest) -> Manifest:
    """The head's pod, where the driver runs."""
    spec: Manifest = cluster_of(owner)["headGroupSpec"]["template"]["spec"]
    return spec


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template, the submitters' too, with its place."""
    for name, cluster in clusters(manifests):
        for group in groups(cluster):
            yield f"{name}/{group.get('groupName', 'head')}", group["template"]
    for job in of_kind(manifests, "RayJob"):
        if "submitterPodTemplate" in job["spec"]:
            yield f"{job['metadata']['name']}/submitter", job["spec"]["submitterPodTemplate"]


def containers(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Every container with its place and its pod's `spec`; the autoscalers' too, which are
    described without name and image."""
    for place, pod in pods(manifests):
        spec = pod["spec"]
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            yield f"{place}/{each['name']}", spec, each
    for name, cluster in clusters(manifests):
        if cluster.get("enableInTreeAutoscaling"):
            spec = cluster["headGroupSpec"]["template"]["spec"]
            yield f"{name}/autoscaler", spec, cluster.get("autoscalerOptions", {})


def in_image(path: str) -> bool:
    """Whether a file of the image is in the repository, and .dockerignore lets it in."""
    own = PurePosixPath(path.removeprefix(IN_IMAGE))
    if not path.startswith(IN_IMAGE) or not (ROOT / own).is_file():
        return False
    names, kept = [str(own), *map(str, own.parents)], True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            kept = line.startswith("!")
    return kept
