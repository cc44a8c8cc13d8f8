"""What a job runs, and how it goes on when something is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import schemas
from mounting import is_mounted_everywhere, lasting, mounted_files
from planning import entrypoints, parsed, runs
from reading import Manifest, clusters, groups, in_image, of_kind
from registry import rule

from dfka_dist.errors import InputError

PROGRAMS = {"/app/jobs/amalgamate.py": False, "/app/jobs/tune.py": True}
"""What a RayJob may run, and whether its configuration has a search."""


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
            if len(hook) != 3 or not in_image(hook[1]):
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
    for job, entry in entrypoints(manifests):
        if job["spec"].get("backoffLimit", 0) < 1 or "--resume" not in entry.words:
            yield f"{entry.job}: a lost node ends the run, or begins it anew"
        if not entry.value_of("--output").startswith(tuple(f"{at}/" for at in lasting(job))):
            yield f"{entry.job}: results are lost with the head"
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
    """The program trains or searches, is in the image and knows the arguments; its configuration is
    mounted and for it."""
    for job, entry in entrypoints(manifests):
        if entry.interpreter != "python" or entry.program not in PROGRAMS:
            yield f"{entry.job}: {entry.interpreter} {entry.program} is no job"
            continue
        if not in_image(entry.program):
            yield f"{entry.job}: {entry.program} is not in the image"
        yield from (f"{entry.job}: {line}" for line in schemas.argument_errors(entry.words))
        asked, files = entry.value_of("--config"), mounted_files(job, manifests)
        if asked not in files:
            yield f"{entry.job}: {asked} is not mounted"
        elif _searches(files[asked]) not in (PROGRAMS[entry.program], None):
            yield f"{entry.job}: {asked} is not what {entry.program} takes"


def _searches(text: str) -> bool | None:
    """Whether a configuration has a search; None where it is none, which another rule says."""
    try:
        return parsed(text).search is not None
    except InputError:
        return None


@rule
def jobs_do_not_share_what_they_write(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Neither output folders nor names of runs, by which checkpoints are found."""
    outputs = Counter(entry.value_of("--output") for _, entry in entrypoints(manifests))
    names = Counter(config.run.name for _, config in runs(manifests))
    for what, count in (*outputs.items(), *names.items()):
        if count > 1:
            yield f"{what} is written by {count} jobs"
