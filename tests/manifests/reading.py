"""What stands in rendered manifests: clusters, pods, containers, runs and mounts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.loading import load, parse
from dfka_dist.teachers.nodes import NodeResources
from dfka_dist.tuning.space import Space

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
        own = each["spec"] if each["kind"] == "RayCluster" else each["spec"]["rayClusterSpec"]
        yield each["metadata"]["name"], own


def groups(cluster: Manifest) -> list[Manifest]:
    """Head and worker groups of a cluster."""
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template, the submitters' too, with its place."""
    for name, cluster in clusters(manifests):
        for group in groups(cluster):
            yield f"{name}/{group.get('groupName', 'head')}", group["template"]
    for job in of_kind(manifests, "RayJob"):
        if "submitterPodTemplate" in job["spec"]:
            yield f"{job['metadata']['name']}/submitter", job["spec"]["submitterPodTemplate"]


def containers(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every container, the autoscalers' too: they are described without name and image."""
    for place, pod in pods(manifests):
        spec = pod["spec"]
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            yield f"{place}/{each['name']}", each
    for name, cluster in clusters(manifests):
        if cluster.get("enableInTreeAutoscaling"):
            yield f"{name}/autoscaler", cluster.get("autoscalerOptions", {})


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


def parsed(text: str) -> RunConfig:
    """A run from YAML, and what it searches, if it does."""
    config = parse(yaml.safe_load(text))
    if config.search is not None:
        Space(config)
    return config


def preset(name: str) -> RunConfig:
    """A preset as it stands in the repository."""
    return load(ROOT / "jobs" / "presets" / f"{name}.yaml")


def in_repository(path: str) -> bool:
    """Whether a file of the image is in the repository."""
    own = path.removeprefix(IN_IMAGE)
    return path.startswith(IN_IMAGE) and (ROOT / own).is_file()


def value_of(words: Sequence[str], option: str) -> str | None:
    """What follows an option on a command line."""
    return words[words.index(option) + 1] if option in words[:-1] else None


def head(job: Manifest) -> Manifest:
    """The head's pod, where the driver runs."""
    spec: Manifest = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return spec


def mounts(spec: Manifest, kind: str) -> dict[str, Manifest]:
    """Where the first container has volumes of a kind."""
    volumes = {each["name"]: each[kind] for each in spec.get("volumes", []) if kind in each}
    mounts = spec["containers"][0].get("volumeMounts", [])
    return {each["mountPath"]: volumes[each["name"]] for each in mounts if each["name"] in volumes}


def lasting(job: Manifest) -> list[str]:
    """Folders of the driver that outlive its pod."""
    return list(mounts(head(job), "persistentVolumeClaim"))


def mounted_files(job: Manifest, manifests: Sequence[Manifest]) -> set[str]:
    """Files of ConfigMaps that the driver sees."""
    data = {each["metadata"]["name"]: each["data"] for each in of_kind(manifests, "ConfigMap")}
    mounted = mounts(head(job), "configMap")
    return {f"{at}/{file}" for at, own in mounted.items() for file in data.get(own["name"], {})}


def is_mounted_everywhere(manifests: Sequence[Manifest], storage: str) -> bool:
    """Whether head and trainers have a claim there; servers read no checkpoints."""
    specs = [
        group["template"]["spec"]
        for _, cluster in clusters(manifests)
        for group in groups(cluster)
        if group.get("groupName") != "teachers"
    ]
    return all(
        any(storage.startswith(f"{at}/") for at in mounts(spec, "persistentVolumeClaim"))
        for spec in specs
    )


def quotas(manifests: Sequence[Manifest]) -> dict[str, float]:
    """What Kueue has to give."""
    return {
        resource["name"]: amount(resource["nominalQuota"])
        for queue in of_kind(manifests, "ClusterQueue")
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    }


def asked(manifests: Sequence[Manifest], kind: str) -> float:
    """What all pods of some objects ask for together."""
    total = 0.0
    for _, cluster in clusters(manifests):
        for group in groups(cluster):
            own = group["template"]["spec"]["containers"]
            count = group.get("replicas", 1)
            total += count * sum(amount(each["resources"]["requests"][kind]) for each in own)
    for job in of_kind(manifests, "RayJob"):
        for each in (
            job["spec"]
            .get("submitterPodTemplate", {})
            .get("spec", {"containers": []})["containers"]
        ):
            total += amount(each["resources"]["requests"][kind])
    return total
