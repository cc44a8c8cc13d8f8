"""What Kubernetes asks of pods, and Ray of what they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import schemas
from mounting import claimants
from reading import Manifest, amount, clusters, containers, groups, of_kind, pods
from registry import rule

ONE_NODE = ("dfka-dist/nodes", "one")
"""What a claim says where all pods are on one node, whose disk does for all of them."""


@rule
def fits_the_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Kubernetes' own kinds, and pod templates inside of others."""
    for each in manifests:
        yield from schemas.core_errors(each)
    for place, pod in pods(manifests):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **pod}
        yield from (f"{place}: {line}" for line in schemas.core_errors(whole))


@rule
def resources_are_asked_and_bounded(manifests: Sequence[Manifest]) -> Iterator[str]:
    """CPU and memory have request and limit everywhere, and no request is above its limit."""
    for place, _, container in containers(manifests):
        given = container.get("resources", {})
        asked, bound = given.get("requests", {}), given.get("limits", {})
        for kind in ("cpu", "memory"):
            if kind not in asked or kind not in bound:
                yield f"{place}: no request or no limit of {kind}"
        for kind in asked.keys() & bound.keys():
            if amount(asked[kind]) > amount(bound[kind]):
                yield f"{place}: more {kind} asked than allowed"


@rule
def shared_memory_holds_the_object_store(manifests: Sequence[Manifest]) -> Iterator[str]:
    """/dev/shm is in memory, as large as Ray's object store, and within the container's limit."""
    for name, cluster in clusters(manifests):
        for group in groups(cluster):
            place = f"{name}/{group.get('groupName', 'head')}"
            spec = group["template"]["spec"]
            own = spec["containers"][0]
            mounted = {each["mountPath"]: each["name"] for each in own.get("volumeMounts", [])}
            volumes = {each["name"]: each for each in spec.get("volumes", [])}
            shm = volumes.get(mounted.get("/dev/shm", ""), {}).get("emptyDir", {})
            store = amount(group.get("rayStartParams", {}).get("object-store-memory", "0"))
            if shm.get("medium") != "Memory" or not store:
                yield f"{place}: /dev/shm is not in memory, or the object store has no size"
            elif not store <= amount(shm.get("sizeLimit", 0)):
                yield f"{place}: /dev/shm is smaller than the object store"
            elif 2 * amount(shm["sizeLimit"]) > amount(own["resources"]["limits"].get("memory", 0)):
                yield f"{place}: /dev/shm takes more than half of the pod's memory"


@rule
def what_is_mounted_is_there(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Volumes, claims, ConfigMaps and the files that entrypoints name."""
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    maps = {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap")}
    for place, pod in pods(manifests):
        volumes = pod["spec"].get("volumes", [])
        for each in volumes:
            claim = each.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{place}: no claim {claim}"
            wanted = each.get("configMap", {}).get("name")
            if wanted is not None and wanted not in maps:
                yield f"{place}: no ConfigMap {wanted}"
        for container in pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in {each["name"] for each in volumes}:
                    yield f"{place}: no volume {mount['name']}"


@rule
def a_disk_is_on_one_node(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is not ReadWriteMany has one pod, or all pods are on one node."""
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        name, notes = claim["metadata"]["name"], claim["metadata"].get("annotations", {})
        if "ReadWriteMany" in claim["spec"]["accessModes"] or ONE_NODE in notes.items():
            continue
        places = [place for claimed, place in claimants(manifests) if claimed == name]
        if len(places) > 1 or not all(place.endswith("/head") for place in places):
            yield f"{name} is wanted on several nodes: {', '.join(places)}"


@rule
def one_image_for_all(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every pod has the same, with a tag that is not `latest`."""
    images = {each["image"] for _, _, each in containers(manifests) if "image" in each}
    if len(images) > 1:
        yield f"several images: {', '.join(sorted(images))}"
    for image in images:
        if image.rpartition(":")[2] in (image, "", "latest"):
            yield f"{image} may be another tomorrow"
