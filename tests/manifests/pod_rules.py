"""What Kubernetes asks of pods, and we of what they may do and reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import schemas
from reading import Manifest, amount, clusters, containers, groups, of_kind, pods
from registry import rule


@rule
def fits_the_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Kubernetes' own kinds, and pod templates inside of others."""
    for each in manifests:
        yield from schemas.core_errors(each)
    for place, pod in pods(manifests):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **pod}
        yield from (f"{place}: {line}" for line in schemas.core_errors(whole))


@rule
def pod_security_is_restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The namespace asks for it, and all pods and containers have what it asks for."""
    for space in of_kind(manifests, "Namespace"):
        labels = space["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {space['metadata']['name']} enforces nothing"
    for place, pod in pods(manifests):
        spec, given = pod["spec"], pod["spec"].get("securityContext", {})
        if given.get("runAsNonRoot") is not True or given.get("runAsUser", 1) == 0:
            yield f"{place}: may be root"
        if given.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{place}: seccompProfile"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{place}: shares a namespace of the node"
        if any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield f"{place}: mounts a path of the node"
    for place, container in containers(manifests):
        given = container.get("securityContext", {})
        if given.get("allowPrivilegeEscalation") is not False or given.get("privileged"):
            yield f"{place}: may gain privileges"
        capabilities = given.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{place}: has capabilities"


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
        for container in spec["containers"]:
            if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
                yield f"{place}/{container['name']}: its token is mounted by hand"


@rule
def resources_are_asked_and_bounded(manifests: Sequence[Manifest]) -> Iterator[str]:
    """CPU and memory have request and limit everywhere, and no request is above its limit."""
    for place, container in containers(manifests):
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
def secrets_are_only_referred_to(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No Secret is in the repository, and no environment variable looks like one."""
    for each in of_kind(manifests, "Secret"):
        yield f"Secret {each['metadata']['name']} with its value"
    for place, container in containers(manifests):
        for variable in container.get("env", []):
            if re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]) and "value" in variable:
                yield f"{place}: {variable['name']} with its value"


@rule
def networks_are_closed_but_for_what_ray_needs(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Deny by default; then names, Ray's nodes among each other, and the dashboard."""
    policies = {
        each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "NetworkPolicy")
    }
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if closed not in policies.values():
        yield "nothing is denied by default"
    for policy, port in (("dns", 53), ("dashboard", 8265), ("submitter", 8265), ("storage", 443)):
        own = policies.get(policy, {})
        sides = (*own.get("ingress", []), *own.get("egress", []))
        if port not in {each["port"] for side in sides for each in side.get("ports", [])}:
            yield f"no policy {policy} opens {port}"
    inside = policies.get("ray-nodes", {})
    if not inside.get("ingress") or not inside.get("egress"):
        yield "Ray's nodes do not reach each other"
    for name, policy in policies.items():
        if any(side == {} for side in (*policy.get("ingress", []), *policy.get("egress", []))):
            yield f"{name} opens everything"


@rule
def one_image_for_all(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every pod has the same, with a tag that is not `latest`."""
    images = {each["image"] for _, each in containers(manifests) if "image" in each}
    if len(images) > 1:
        yield f"several images: {', '.join(sorted(images))}"
    for image in images:
        if image.rpartition(":")[2] in (image, "", "latest"):
            yield f"{image} may be another tomorrow"
