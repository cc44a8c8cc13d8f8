"""What KubeRay's operator checks, and its schemas do not say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import schemas
from reading import Manifest, clusters, groups, of_kind
from registry import rule

_DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
TOKEN = "dfka-ray-token"
_LONGEST = {"RayCluster": 53, "RayJob": 47}
"""KubeRay's MaxRayClusterNameLength, and less the six characters that a job's cluster adds."""


@rule
def fits_kuberays_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """RayCluster and RayJob; nothing is said where the schemas are not there."""
    for each in of_kind(manifests, "RayCluster", "RayJob"):
        yield from schemas.kuberay_errors(each)


@rule
def token_needs_a_new_enough_ray(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`authOptions.mode: token` needs a rayVersion of 2.52 or later, and we always want a token, of
    a Secret that is made before: KubeRay's own would be another one for each cluster."""
    for name, cluster in clusters(manifests):
        given = cluster.get("authOptions", {})
        if given.get("mode") != "token":
            yield f"{name}: anybody who reaches the dashboard can run code there"
        if given.get("secretName") != TOKEN:
            yield f"{name}: its token is not that of the Secret {TOKEN}"
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
def the_dashboard_listens(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Operator and submitter come from other pods, so it listens at all addresses, at its port."""
    for name, cluster in clusters(manifests):
        given = cluster["headGroupSpec"].get("rayStartParams", {})
        if given.get("dashboard-host") not in ("0.0.0.0", "::"):
            yield f"{name}: its dashboard listens at {given.get('dashboard-host', '127.0.0.1')}"
        ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports", [])
        named = {each.get("name"): each["containerPort"] for each in ports}
        if {given.get("dashboard-port", "8265"), str(named.get("dashboard"))} != {"8265"}:
            yield f"{name}: its dashboard has another port than the policies open"
