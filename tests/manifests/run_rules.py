"""What a run needs: its configuration, its nodes, and to go on when something is lost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import schemas
from reading import (
    ROOT,
    Manifest,
    clusters,
    configurations,
    groups,
    in_repository,
    is_mounted_everywhere,
    lasting,
    mounted_files,
    nodes,
    of_kind,
    parsed,
    runs,
    value_of,
)
from registry import rule

from dfka_dist.errors import InputError
from dfka_dist.teachers.placement import plan


@rule
def the_head_computes_nothing(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`num-cpus: "0"`: the driver has the pod's CPU, servers and workers go elsewhere."""
    for name, cluster in clusters(manifests):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{name}: servers could be placed on the head"


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
