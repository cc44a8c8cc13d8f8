"""What Kueue asks, and has to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import schemas
from reading import Manifest, amount, clusters, groups, of_kind
from registry import rule

LABEL = "kueue.x-k8s.io/queue-name"


@rule
def fits_kueues_shapes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Its kinds, as far as kueue.yaml has them, and names that agree."""
    flavors = {each["metadata"]["name"] for each in of_kind(manifests, "ResourceFlavor")}
    queues = {each["metadata"]["name"] for each in of_kind(manifests, "ClusterQueue")}
    for each in manifests:
        if each["apiVersion"].startswith(schemas.KUEUE):
            yield from schemas.kueue_errors(each)
    for each in of_kind(manifests, "LocalQueue"):
        if each["spec"].get("clusterQueue") not in queues:
            yield f"{each['metadata']['name']}: no queue {each['spec'].get('clusterQueue')}"
    for each in of_kind(manifests, "ClusterQueue"):
        for group in each["spec"].get("resourceGroups", []):
            for flavor in group["flavors"]:
                if flavor["name"] not in flavors:
                    yield f"{each['metadata']['name']}: no flavour {flavor['name']}"
                if [own["name"] for own in flavor["resources"]] != group["coveredResources"]:
                    yield f"{each['metadata']['name']}: resources that are not covered, or not had"


@rule
def a_queue_has_room_for_a_job(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is in a queue of Kueue's exists, does not grow, and all of it fits into the quota."""
    queues = {each["metadata"]["name"] for each in of_kind(manifests, "LocalQueue")}
    for each in of_kind(manifests, "RayJob", "RayCluster"):
        queue = each["metadata"].get("labels", {}).get(LABEL)
        if queue is None:
            continue
        name, spec = each["metadata"]["name"], each["spec"]
        if queue not in queues:
            yield f"{name}: no queue {queue}"
        if each["kind"] == "RayCluster" or not spec.get("shutdownAfterJobFinishes"):
            yield f"{name}: keeps its quota for ever"
        if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield f"{name}: grows, which the queue does not see"
        for kind, quota in _quotas(manifests).items():
            if _asked(each, kind) > quota:
                yield f"{name}: asks for more {kind} than the quota, {quota:g}, ever has"


def _quotas(manifests: Sequence[Manifest]) -> dict[str, float]:
    return {
        resource["name"]: amount(resource["nominalQuota"])
        for queue in of_kind(manifests, "ClusterQueue")
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    }


def _asked(owner: Manifest, kind: str) -> float:
    """What all pods of a job or a cluster ask for together."""
    own = [
        (group.get("replicas", 1), group["template"])
        for _, cluster in clusters([owner])
        for group in groups(cluster)
    ]
    if "submitterPodTemplate" in owner["spec"]:
        own.append((1, owner["spec"]["submitterPodTemplate"]))
    return sum(
        count * amount(each["resources"]["requests"][kind])
        for count, pod in own
        for each in pod["spec"]["containers"]
    )
