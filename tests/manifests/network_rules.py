"""Who must reach whom, and who must not, whatever the policies are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reaching import POD, End, kuberays_labels, ray_ends, reaches, submitters
from reading import Manifest, clusters, of_kind
from registry import rule

RAY_PORT, DASHBOARD, METRICS = 6379, 8265, 8080
SOME_PORT = 34567
"""As Ray's processes choose theirs."""
_KUBERAY = {"app.kubernetes.io/component": "kuberay-operator"}
OPERATORS = (
    End(
        "operator of KubeRay's manifests",
        POD,
        "a",
        {**_KUBERAY, "app.kubernetes.io/name": "kuberay"},
    ),
    End(
        "operator of KubeRay's chart",
        POD,
        "b",
        {**_KUBERAY, "app.kubernetes.io/name": "kuberay-operator"},
    ),
)
NAMES = (
    End("cluster DNS", POD, "kube-system", {"k8s-app": "kube-dns"}),
    End("NodeLocal DNSCache", "169.254.20.10"),
    End("Cloud DNS of GKE", "169.254.169.254"),
)
METADATA = (
    End("the node's metadata", "169.254.169.254"),
    End("EKS Pod Identity", "169.254.170.23"),
)
PROMETHEUS = End("Prometheus", POD, "monitoring", {})
STORE = End("an object store", "203.0.113.7")
APISERVER = End("the apiserver", "203.0.113.8")

Way = tuple[End, End, int, str, bool]
"""Source, target, port, protocol, and whether it must be open."""


@rule
def everybody_reaches_what_is_needed_and_nothing_else(
    manifests: Sequence[Manifest],
) -> Iterator[str]:
    """Every way that `ways` has is open or closed as it says."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    for source, target, port, protocol, wanted in ways(manifests):
        if reaches(policies, source, target, port, protocol) != wanted:
            found = "does not reach" if wanted else "reaches"
            yield f"{source.what} {found} {target.what} at {protocol} {port}"


def ways(manifests: Sequence[Manifest]) -> Iterator[Way]:
    """The whole table."""
    rays = list(ray_ends(manifests))
    for name, submitter in submitters(manifests):
        yield from _of_a_submitter(submitter, [end for owner, end in rays if owner == name])
        yield from _of_names(submitter)
    yield from _of_others_beside(manifests)
    growing = {name for name, each in clusters(manifests) if each.get("enableInTreeAutoscaling")}
    for name, end in rays:
        yield from _of_names(end)
        for owner, other in rays:
            if owner == name:
                yield from ((end, other, port, "TCP", True) for port in (RAY_PORT, SOME_PORT))
        yield PROMETHEUS, end, METRICS, "TCP", True
        yield PROMETHEUS, end, RAY_PORT, "TCP", False
        yield end, STORE, 443, "TCP", True
        yield from ((end, STORE, port, "TCP", False) for port in (22, 80, DASHBOARD))
        yield from ((end, each, port, "TCP", False) for each in METADATA for port in (80, 443, 988))
        asks = name in growing and end.what.endswith("/head")
        yield end, APISERVER, 6443, "TCP", asks
        yield from _of_strangers(end)


def _of_a_submitter(submitter: End, rays: Sequence[End]) -> Iterator[Way]:
    for end in rays:
        is_head = end.what.endswith("/head")
        yield submitter, end, DASHBOARD, "TCP", is_head
        yield submitter, end, RAY_PORT, "TCP", False
        for operator in OPERATORS:
            yield operator, end, DASHBOARD, "TCP", is_head
    yield submitter, STORE, 443, "TCP", False


def _of_names(end: End) -> Iterator[Way]:
    for names in NAMES:
        yield from ((end, names, 53, protocol, True) for protocol in ("UDP", "TCP"))
        yield end, names, METRICS, "TCP", False


def _of_others_beside(manifests: Sequence[Manifest]) -> Iterator[Way]:
    """Whatever pod there may be in our namespace neither calls nor is called."""
    for space in of_kind(manifests, "Namespace"):
        beside = End("a pod beside ours", POD, space["metadata"]["name"], {})
        yield beside, STORE, 443, "TCP", False
        yield PROMETHEUS, beside, METRICS, "TCP", False


def _of_strangers(end: End) -> Iterator[Way]:
    """Ray pods of others, a pod of nobody's beside ours, operators elsewhere than at the dashboard,
    and the world."""
    strangers = (
        End("a Ray pod of others", POD, "others", kuberays_labels("worker")),
        End("a pod beside ours", POD, end.namespace, {}, is_free=True),
        End("the world", "203.0.113.9"),
    )
    for stranger in strangers:
        for port in (RAY_PORT, DASHBOARD, METRICS, SOME_PORT):
            yield stranger, end, port, "TCP", False
    yield OPERATORS[0], end, RAY_PORT, "TCP", False
