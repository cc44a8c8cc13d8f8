"""What a run needs of its cluster: a configuration, nodes, and cores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from planning import configurations, nodes, parsed, runs
from reading import ROOT, Manifest, amount, clusters
from registry import rule

from dfka_dist.config import RunConfig
from dfka_dist.errors import InputError
from dfka_dist.teachers.placement import plan

HEAD, TRIAL = 3 * 2**30, 2**30
"""Bytes that the head takes alone, its shared memory among them, and of every run that is driven
from there."""


@rule
def the_head_computes_nothing(manifests: Sequence[Manifest]) -> Iterator[str]:
    """`num-cpus: "0"`: the driver has the pod's CPU, servers and workers go elsewhere."""
    for name, cluster in clusters(manifests):
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{name}: servers could be placed on the head"


@rule
def the_head_has_memory_for_all_trials(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Their drivers are beside that of the search."""
    for name, config in runs(manifests):
        needed = HEAD + TRIAL * _trials(config)
        for owner, cluster in clusters(manifests):
            pod = cluster["headGroupSpec"]["template"]["spec"]
            if amount(pod["containers"][0]["resources"]["limits"]["memory"]) < needed:
                yield f"{owner}: the head has less than {needed / 2**30:g} GiB, for {name}"


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
    """Teachers fit onto the nodes of their label, and trainers of all trials onto theirs."""
    for name, config in runs(manifests):
        serving, training = config.serving, config.training
        if not serving.node_labels or serving.node_labels == training.node_labels:
            yield f"{name}: teachers and trainers are not told apart"
        grown = serving.model_copy(update={"wait_for_nodes": False})
        most = max(training.worker_range) * _trials(config)
        all_trials = training.model_copy(update={"workers": most})
        asked = config.model_copy(update={"serving": grown, "training": all_trials})
        for owner, cluster in clusters(manifests):
            try:
                plan(asked, nodes(cluster))
            except InputError as error:
                yield f"{owner}: {name}: {error}"


def _trials(config: RunConfig) -> int:
    """At once, as far as the configuration says it."""
    return (config.search.concurrent or 1) if config.search is not None else 1


@rule
def threads_have_cores(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A process sees all cores of the machine, so a run says how many of them are its pod's."""
    for name, config in runs(manifests):
        training, serving = config.training, config.serving
        if training.threads is None or training.threads > training.worker_cpus:
            yield f"{name}: {training.threads} threads on {training.worker_cpus:g} CPU"
        if serving.threads > math.ceil(serving.cpus):
            yield f"{name}: {serving.threads} threads of a server on {serving.cpus:g} CPU"


@rule
def a_run_waits_for_its_nodes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """On a new head a job begins before the other pods are there again."""
    for name, config in runs(manifests):
        if not config.serving.wait_for_nodes or config.serving.start_timeout < 600:
            yield f"{name}: is refused where its nodes come late"
