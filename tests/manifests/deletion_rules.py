"""When clusters of jobs go away: every end of a job takes its cluster with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reading import Manifest, of_kind
from registry import rule

ENDS = (("jobStatus", "SUCCEEDED"), ("jobDeploymentStatus", "Failed"))
"""What a job must have a rule for. `jobStatus: FAILED` leaves out a job whose head was lost, that
was never submitted, or that ran into its deadline. No rule can say STOPPED."""
_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


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
def every_end_deletes_the_cluster(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Where there are deletionRules, one deletes the cluster after each of the ends."""
    for job in of_kind(manifests, "RayJob"):
        strategy = job["spec"].get("deletionStrategy")
        if strategy is None:
            continue
        ends = {
            (key, each["condition"].get(key))
            for each in strategy.get("deletionRules", [])
            for key in ("jobStatus", "jobDeploymentStatus")
            if each["policy"] == "DeleteCluster"
        }
        for key, value in ENDS:
            if (key, value) not in ends:
                yield f"{job['metadata']['name']}: its cluster stays after {key} {value}"


@rule
def deletion_rules_agree(manifests: Sequence[Manifest]) -> Iterator[str]:
    """One status each, which CEL asks for and no schema says; one of a kind; workers before the
    cluster before the job; no workers of an autoscaler."""
    for job in of_kind(manifests, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        strategy = spec.get("deletionStrategy", {})
        if "deletionRules" in strategy and len(strategy) > 1:
            yield f"{name}: deletionRules beside an older policy"
        seconds: dict[str, dict[str, int]] = {}
        for each in strategy.get("deletionRules", []):
            given = {k: v for k, v in each["condition"].items() if k != "ttlSeconds"}
            if len(given) != 1:
                yield f"{name}: a rule for {len(given)} statuses"
            own = seconds.setdefault(str(given), {})
            if each["policy"] in own:
                yield f"{name}: two rules of a kind for {given}"
            own[each["policy"]] = each["condition"].get("ttlSeconds", 0)
        for status, own in seconds.items():
            times = [own[policy] for policy in _ORDER if policy in own]
            if times != sorted(times):
                yield f"{name}: {status} deletes the whole before its parts"
            if "DeleteWorkers" in own and spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
                yield f"{name}: DeleteWorkers is not for clusters that grow"
