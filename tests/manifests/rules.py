"""What must be true of the manifests that an overlay renders, one function a rule.

A rule is given all objects of an overlay and yields one line for everything that breaks it. It
knows what the schemas do not: the operator's own checks, Pod Security, and what this project asks
of its jobs. `broken` runs them all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

import schemas
from reading import (
    ROOT,
    Manifest,
    amount,
    asked,
    clusters,
    configurations,
    containers,
    groups,
    in_repository,
    is_mounted_everywhere,
    lasting,
    mounted_files,
    nodes,
    of_kind,
    parsed,
    pods,
    quotas,
    runs,
    value_of,
)

from dfka_dist.errors import InputError
from dfka_dist.teachers.placement import plan

Rule = Callable[[Sequence[Manifest]], Iterator[str]]

RULES: list[Rule] = []

_DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_LONGEST = {"RayCluster": 53, "RayJob": 47}
"""KubeRay's MaxRayClusterNameLength, and less the six characters that a job's cluster adds."""


def rule(check: Rule) -> Rule:
    """Add a function to the rules."""
    RULES.append(check)
    return check


def broken(manifests: Sequence[Manifest]) -> list[str]:
    """Everything that is wrong, with the name of the rule in front."""
    return [f"{check.__name__}: {line}" for check in RULES for line in check(manifests)]


@rule
def fits_the_schemas(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Kubernetes' own kinds, and pod templates inside of others."""
    for each in manifests:
        yield from schemas.core_errors(each)
    for place, pod in pods(manifests):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **pod}
        yield from (f"{place}: {line}" for line in schemas.core_errors(whole))


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
def the_head_computes_nothing(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`num-cpus: "0"`: the driver has the pod's CPU, servers and workers go elsewhere."""
    for name, cluster in clusters(manifests):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{name}: servers could be placed on the head"


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
def a_stopped_pod_tells_the_run(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`preStop` waits longer than `training.checkpoint.grace`, and the pod longer than that."""
    grace = max((each.training.checkpoint.grace for _, each in runs(manifests)), default=60.0)
    for name, cluster in clusters(manifests):
        for group in groups(cluster):
            place = f"{name}/{group.get('groupName', 'head')}"
            spec = group["template"]["spec"]
            own = spec["containers"][0]
            hook = own.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if len(hook) != 3 or not in_repository(hook[1]):
                yield f"{place}: nobody tells the run"
            elif not grace < float(hook[2]) < spec.get("terminationGracePeriodSeconds", 30):
                yield f"{place}: killed before the checkpoint is made"
        head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
        patience = {each["name"]: each.get("value", "0") for each in head.get("env", [])}
        if not grace < float(patience.get("RAY_JOB_STOP_WAIT_TIME_S", "3")):
            yield f"{name}: `ray job stop` kills before the checkpoint is made"


@rule
def a_retry_goes_on(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A retry is a new cluster: --resume, and storage and output that outlive the pods."""
    for job in of_kind(manifests, "RayJob"):
        name, words = job["metadata"]["name"], shlex.split(job["spec"]["entrypoint"])
        if job["spec"].get("backoffLimit", 0) < 1 or "--resume" not in words:
            yield f"{name}: a lost node ends the run, or begins it anew"
        output = value_of(words, "--output") or ""
        if not output.startswith(tuple(f"{place}/" for place in lasting(job))):
            yield f"{name}: results are lost with the head"
    for name, config in runs(manifests):
        kept = config.training.checkpoint
        outlive = {at for job in of_kind(manifests, "RayJob") for at in lasting(job)}
        if kept.storage is None or not kept.every:
            yield f"{name}: no checkpoints that a new cluster finds"
        elif "://" not in kept.storage:
            if not kept.storage.startswith(tuple(f"{place}/" for place in outlive)):
                yield f"{name}: checkpoints are lost with the pod"
            if not kept.shared or not is_mounted_everywhere(manifests, kept.storage):
                yield f"{name}: {kept.storage} is not the same on all nodes"


@rule
def entrypoints_are_jobs_that_take_them(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The file is in the repository, knows the arguments, and its configuration is mounted."""
    for job in of_kind(manifests, "RayJob"):
        name = job["metadata"]["name"]
        python, program, *words = shlex.split(job["spec"]["entrypoint"])
        if python != "python" or not in_repository(program):
            yield f"{name}: {python} {program} is no job"
            continue
        yield from (f"{name}: {line}" for line in schemas.argument_errors(words))
        asked = value_of(words, "--config") or ""
        if asked not in mounted_files(job, manifests):
            yield f"{name}: {asked} is not mounted"


@rule
def configurations_load(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is in ConfigMaps is a run, of a cluster, whose `preset:` weights are in the image."""
    for name, text in configurations(manifests):
        try:
            config = parsed(text)
        except InputError as error:
            yield f"{name}: {error}"
            continue
        if config.run.address != "auto":
            yield f"{name}: run.address is not that of the cluster that it runs in"
        for teacher in config.teachers:
            kind, _, path = (teacher.weights or "").partition(":")
            if kind == "preset" and not (ROOT / "jobs" / "presets" / path).is_file():
                yield f"{name}: no {teacher.weights}"


@rule
def one_image_for_all(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every pod has the same, with a tag that is not `latest`."""
    images = {each["image"] for _, each in containers(manifests) if "image" in each}
    if len(images) > 1:
        yield f"several images: {', '.join(sorted(images))}"
    for image in images:
        if image.rpartition(":")[2] in (image, "", "latest"):
            yield f"{image} may be another tomorrow"


@rule
def nodes_have_what_the_plan_asks_for(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Teachers fit onto the nodes of their label, and trainers onto those of theirs."""
    for name, config in runs(manifests):
        serving = config.serving
        if not serving.node_labels or serving.node_labels == config.training.node_labels:
            yield f"{name}: teachers and trainers are not told apart"
        grown = serving.model_copy(update={"wait_for_nodes": False})
        for owner, cluster in clusters(manifests):
            try:
                plan(config.model_copy(update={"serving": grown}), nodes(cluster))
            except InputError as error:
                yield f"{owner}: {name}: {error}"


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
