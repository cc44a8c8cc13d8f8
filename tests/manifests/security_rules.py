"""Pod Security "restricted", tokens and secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from reading import Manifest, clusters, containers, of_kind, pods
from registry import rule

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""All kinds that "restricted" allows."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
ACCOUNTS_FILES = {"token", "ca.crt", "namespace"}


@rule
def namespaces_enforce_restricted_pods(manifests: Sequence[Manifest]) -> Iterator[str]:
    """All that has a namespace is in ours, which refuses other pods."""
    spaces = {each["metadata"]["name"]: each for each in of_kind(manifests, "Namespace")}
    for name, space in spaces.items():
        labels = space["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {name} enforces nothing"
    for each in manifests:
        place = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] in ("Namespace", "ClusterQueue", "ResourceFlavor"):
            continue
        if each["metadata"].get("namespace") not in spaces or len(spaces) > 1:
            yield f"{place} is in the namespace {each['metadata'].get('namespace')}"


@rule
def pods_share_nothing_of_their_node(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No namespaces, kernel settings, paths or ports of the node."""
    for place, pod in pods(manifests):
        spec = pod["spec"]
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{place}: shares a namespace of the node"
        if spec.get("securityContext", {}).get("sysctls"):
            yield f"{place}: changes the kernel's settings"
        for volume in spec.get("volumes", []):
            kinds = volume.keys() - {"name"}
            if not kinds <= VOLUMES:
                yield f"{place}: mounts {', '.join(sorted(kinds - VOLUMES))}"
    for place, _, container in containers(manifests):
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{place}: has a port of the node"


@rule
def containers_are_restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What counts is a container's own value, and its pod's where it has none."""
    for place, spec, container in containers(manifests):
        own = container.get("securityContext", {})
        if _effective(spec, own, "runAsNonRoot") is not True:
            yield f"{place}: may be root"
        if 0 in (own.get("runAsUser"), spec.get("securityContext", {}).get("runAsUser")):
            yield f"{place}: is root"
        profile = _effective(spec, own, "seccompProfile") or {}
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{place}: seccompProfile {profile.get('type')}"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{place}: may gain privileges"
        if own.get("procMount", "Default") != "Default":
            yield f"{place}: sees all of /proc"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or capabilities.get("add"):
            yield f"{place}: has capabilities"


def _effective(spec: Manifest, own: Manifest, key: str) -> Any:
    return own[key] if key in own else spec.get("securityContext", {}).get(key)


@rule
def accounts_mount_no_token(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Pods have an account of ours, and its token is nowhere but with the autoscaler."""
    accounts = {each["metadata"]["name"]: each for each in of_kind(manifests, "ServiceAccount")}
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"account {name} is mounted by itself"
    for place, pod in pods(manifests):
        spec = pod["spec"]
        if spec.get("serviceAccountName") not in accounts:
            yield f"{place}: {spec.get('serviceAccountName')} is no account that is there"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{place}: its token is mounted"
        tokens = {v["name"] for v in spec.get("volumes", []) if "serviceAccountToken" in str(v)}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
                yield f"{place}/{container['name']}: its token is mounted by hand"


@rule
def autoscalers_have_a_token(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What a mounted account is elsewhere, they mount by hand, of an account of heads alone."""
    for name, cluster in clusters(manifests):
        if not cluster.get("enableInTreeAutoscaling"):
            continue
        spec = cluster["headGroupSpec"]["template"]["spec"]
        workers = [each["template"]["spec"] for each in cluster["workerGroupSpecs"]]
        if spec.get("serviceAccountName") in {e.get("serviceAccountName") for e in workers}:
            yield f"{name}: all pods may do what the autoscaler may"
        volumes = {each["name"]: each for each in spec.get("volumes", [])}
        mounted = {
            each["mountPath"]: volumes.get(each["name"], {})
            for each in cluster.get("autoscalerOptions", {}).get("volumeMounts", [])
        }
        sources = mounted.get(ACCOUNT, {}).get("projected", {}).get("sources", [])
        files = set(re.findall(r"'path': '([^']+)'", str(sources)))
        if not files >= ACCOUNTS_FILES or "serviceAccountToken" not in str(sources):
            yield f"{name}: its autoscaler cannot ask the apiserver"


@rule
def secrets_are_only_referred_to(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No Secret is in the repository, and no environment variable looks like one."""
    for each in of_kind(manifests, "Secret"):
        yield f"Secret {each['metadata']['name']} with its value"
    for place, _, container in containers(manifests):
        for variable in container.get("env", []):
            if re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]) and "value" in variable:
                yield f"{place}: {variable['name']} with its value"
