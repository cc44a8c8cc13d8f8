"""Who reaches whom, as a network plugin would decide it from NetworkPolicies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from reading import Manifest, cluster_of, groups, of_kind

POD = "10.1.2.3"
"""Some pod's address: a block of all addresses holds it too."""


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address where there is none."""

    what: str
    address: str = POD
    namespace: str | None = None
    labels: Mapping[str, str] | None = None
    is_free: bool = False
    """Somebody lets it call anybody, by policies that are not here."""


def reaches(
    policies: Sequence[Manifest], source: End, target: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies let a connection begin."""
    ways = (("egress", "to", source, target), ("ingress", "from", target, source))
    for way, word, own, other in ways:
        if way == "egress" and source.is_free:
            continue
        selecting = [each for each in policies if _selects(each, own) and way in _ways(each)]
        if selecting and not any(
            _opens(rule.get("ports"), port, protocol)
            and _admits(rule.get(word), each["metadata"].get("namespace", "default"), other)
            for each in selecting
            for rule in each["spec"].get(way) or []
        ):
            return False
    return True


def ray_ends(manifests: Sequence[Manifest]) -> Iterator[tuple[str, End]]:
    """Every group of Ray pods, with the labels that KubeRay gives them, and whose it is."""
    for owner in of_kind(manifests, "RayCluster", "RayJob"):
        name, space = owner["metadata"]["name"], owner["metadata"].get("namespace", "default")
        for group in groups(cluster_of(owner)):
            own = group["template"].get("metadata", {}).get("labels", {})
            kind = "worker" if "groupName" in group else "head"
            place = f"{name}/{group.get('groupName', 'head')}"
            yield name, End(place, POD, space, {**kuberays_labels(kind), **own})


def kuberays_labels(kind: str) -> dict[str, str]:
    """What KubeRay writes on every Ray pod in every namespace; `app.kubernetes.io/name` too."""
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": kind,
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }


def submitters(manifests: Sequence[Manifest]) -> Iterator[tuple[str, End]]:
    """The pods that begin a job, and whose they are."""
    for job in of_kind(manifests, "RayJob"):
        name, space = job["metadata"]["name"], job["metadata"].get("namespace", "default")
        pod = job["spec"].get("submitterPodTemplate", {})
        labels = pod.get("metadata", {}).get("labels", {})
        yield name, End(f"{name}/submitter", POD, space, labels)


def _ways(policy: Manifest) -> list[str]:
    spec = policy["spec"]
    given = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return [each.lower() for each in given]


def _selects(policy: Manifest, end: End) -> bool:
    if end.labels is None or end.namespace != policy["metadata"].get("namespace", "default"):
        return False
    return _matches(policy["spec"]["podSelector"], end.labels)


def _admits(peers: Sequence[Manifest] | None, namespace: str, end: End) -> bool:
    return not peers or any(_is(peer, namespace, end) for peer in peers)


def _is(peer: Manifest, namespace: str, end: End) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ip_address(end.address)
        excepted = any(address in ip_network(each) for each in block.get("except", []))
        return address in ip_network(block["cidr"]) and not excepted
    if end.labels is None:
        return False
    if "namespaceSelector" in peer:
        named = {"kubernetes.io/metadata.name": end.namespace or ""}
        inside = _matches(peer["namespaceSelector"], named)
    else:
        inside = end.namespace == namespace
    return inside and _matches(peer.get("podSelector", {}), end.labels)


def _opens(ports: Sequence[Manifest] | None, port: int, protocol: str) -> bool:
    if not ports:  # none given, or an empty list: all of them
        return True
    return any(
        each.get("protocol", "TCP") == protocol
        and each.get("port", port) <= port <= each.get("endPort", each.get("port", port))
        for each in ports
    )


def _matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    asked = selector.get("matchLabels", {}).items()
    return asked <= labels.items() and all(
        _holds(each, labels) for each in selector.get("matchExpressions", [])
    )


def _holds(expression: Manifest, labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    assert operator in ("In", "NotIn"), operator
    return (labels.get(key) in expression["values"]) == (operator == "In")
