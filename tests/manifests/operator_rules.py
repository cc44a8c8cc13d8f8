"""What the operators check, KubeRay's and Kueue's, and their schemas do not say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import schemas
from reading import Manifest, asked, clusters, groups, of_kind, quotas
from registry import rule

_DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_LONGEST = {"RayCluster": 53, "RayJob": 47}
"""KubeRay's MaxRayClusterNameLength, and less the six characters that a job's cluster adds."""


@rule
def fits_kuberays_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """RayCluster and RayJob; nothing is said where the schemas are not there."""
    for each in of_kind(manifests, "RayCluster", "RayJob"):
        yield from schemas.kuberay_errors(each)


@rule
def token_needs_a_new_enough_ray(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`authOptions.mode: token` needs a rayVersion of 2.52 or later, and we always want a token."""
    for name, cluster in clusters(manifests):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{name}: anybody who reaches the dashboard can run code there"
        version = re.match(r"(\d+)\.(\d+)", cluster.get("rayVersion", ""))
        if version is None or (int(version[1]), int(version[2])) < (2, 52):
            yield f"{name}: rayVersion {cluster.get('rayVersion')} knows no token"


@rule
def autoscaler_v2_restarts_no_pod(manifests: Sequence[Manifest]) -> Iterator[str]:
    """It counts a pod that was started again as another one, so restartPolicy is Never."""
    for name, cluster in clusters(manifests):
        options = cluster.get("autoscalerOptions", {})
        if not cluster.get("enableInTreeAutoscaling") or options.get("version") != "v2":
            continue
        for group in groups(cluster):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{name}/{group.get('groupName', 'head')}: is restarted"


@rule
def replicas_are_in_order(manifests: Sequence[Manifest]) -> Iterator[str]:
    """minReplicas <= replicas <= maxReplicas."""
    for name, cluster in clusters(manifests):
        for group in cluster.get("workerGroupSpecs", []):
            low, now, high = (group.get(k, 0) for k in ("minReplicas", "replicas", "maxReplicas"))
            if not low <= now <= high:
                yield f"{name}/{group['groupName']}: {low} <= {now} <= {high}"


@rule
def who_is_deleted_or_suspended_shuts_down(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A TTL and suspend need shutdownAfterJobFinishes; deletionRules exclude it."""
    for job in of_kind(manifests, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        shuts = spec.get("shutdownAfterJobFinishes", False)
        ruled = "deletionRules" in spec.get("deletionStrategy", {})
        if not shuts and (spec.get("ttlSecondsAfterFinished", 0) or spec.get("suspend")):
            yield f"{name}: a TTL or suspend without shutdownAfterJobFinishes"
        if shuts and ruled:
            yield f"{name}: deletionRules beside shutdownAfterJobFinishes"
        if not shuts and not ruled:
            yield f"{name}: nothing ever deletes its cluster"


@rule
def deletion_rules_agree(manifests: Sequence[Manifest]) -> Iterator[str]:
    """One of a kind; workers before the cluster before the job; no workers of an autoscaler."""
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for job in of_kind(manifests, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        ruled = spec.get("deletionStrategy", {}).get("deletionRules", [])
        grows = spec["rayClusterSpec"].get("enableInTreeAutoscaling")
        for status in {each["condition"].get("jobStatus") for each in ruled}:
            mine = [each for each in ruled if each["condition"].get("jobStatus") == status]
            seconds = {each["policy"]: each["condition"].get("ttlSeconds", 0) for each in mine}
            if len(seconds) < len(mine):
                yield f"{name}: two rules of a kind for {status}"
            times = [seconds[policy] for policy in order if policy in seconds]
            if times != sorted(times):
                yield f"{name}: {status} deletes the whole before its parts"
            if grows and "DeleteWorkers" in seconds:
                yield f"{name}: DeleteWorkers is not for clusters that grow"


@rule
def a_sidecar_has_no_submitter(manifests: Sequence[Manifest]) -> Iterator[str]:
    """SidecarMode forbids a submitter's template and configuration; else there must be one."""
    for job in of_kind(manifests, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        given = [key for key in ("submitterPodTemplate", "submitterConfig") if key in spec]
        if spec.get("submissionMode") == "SidecarMode" and given:
            yield f"{name}: {' and '.join(given)} with SidecarMode"
        if spec.get("submissionMode", "K8sJobMode") == "K8sJobMode" and len(given) < 2:
            yield f"{name}: the operator's own submitter is not fit for Pod Security"


@rule
def names_are_labels_and_short(manifests: Sequence[Manifest]) -> Iterator[str]:
    """DNS-1035, and short enough for what the operator appends."""
    for each in of_kind(manifests, *_LONGEST):
        name = each["metadata"]["name"]
        if not re.fullmatch(_DNS_1035, name) or len(name) > _LONGEST[each["kind"]]:
            yield f"{each['kind']} {name}"


@rule
def groups_are_told_apart_by_labels(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Labels stand in the field `labels`, resources in no two places, names once."""
    for name, cluster in clusters(manifests):
        names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
        if len(names) > len(set(names)):
            yield f"{name}: two groups of the same name"
        for group in groups(cluster):
            given = group.get("rayStartParams", {})
            if "labels" in given:
                yield f"{name}: labels in rayStartParams, which the operator refuses"
            if "resources" in group and {"num-cpus", "num-gpus", "memory"} & given.keys():
                yield f"{name}: resources beside rayStartParams"


@rule
def a_queue_has_room_for_a_job(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is in a queue of Kueue's exists, does not grow, and all of it fits into the quota."""
    label = "kueue.x-k8s.io/queue-name"
    queues = {each["metadata"]["name"] for each in of_kind(manifests, "LocalQueue")}
    for each in of_kind(manifests, "RayJob", "RayCluster"):
        queue = each["metadata"].get("labels", {}).get(label)
        if queue is None:
            continue
        name, spec = each["metadata"]["name"], each["spec"]
        if queue not in queues:
            yield f"{name}: no queue {queue}"
        if each["kind"] == "RayCluster" or not spec.get("shutdownAfterJobFinishes"):
            yield f"{name}: keeps its quota for ever"
        if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield f"{name}: grows, which the queue does not see"
        for kind, quota in quotas(manifests).items():
            if asked([each], kind) > quota:
                yield f"{name}: asks for more {kind} than the quota, {quota:g}, ever has"
