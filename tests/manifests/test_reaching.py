"""NetworkPolicies are read as Kubernetes reads them."""

from __future__ import annotations

from typing import Any

import pytest
from reaching import End, reaches

CLIENT = End("client", "10.0.0.1", "a", {"app": "client"})
SERVER = End("server", "10.0.0.2", "a", {"app": "server"})
STRANGER = End("stranger", "10.0.0.3", "b", {"app": "client"})
OUTSIDE = End("outside", "203.0.113.1")


def policy(app: str | None = "server", **spec: Any) -> dict[str, Any]:
    selector = {} if app is None else {"matchLabels": {"app": app}}
    return {"metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": selector, **spec}}


def incoming(**rule: Any) -> dict[str, Any]:
    return policy(ingress=[rule])


@pytest.mark.parametrize("source", [CLIENT, STRANGER, OUTSIDE])
def test_without_a_policy_everybody_reaches_everybody(source: End) -> None:
    assert reaches([], source, SERVER, 80)


def test_a_policy_without_rules_closes_ingress_alone() -> None:
    assert not reaches([policy()], CLIENT, SERVER, 80)
    assert reaches([policy()], SERVER, CLIENT, 80)
    assert not reaches([policy(policyTypes=["Egress"])], SERVER, CLIENT, 80)


def test_policies_add_up() -> None:
    opening = incoming(**{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]})

    assert reaches([policy(None, policyTypes=["Ingress"]), opening], CLIENT, SERVER, 80)


@pytest.mark.parametrize(
    ("peer", "reached_by"),
    [
        ({"podSelector": {}}, [CLIENT]),
        ({"namespaceSelector": {}}, [CLIENT, STRANGER]),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}, [STRANGER]),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, [OUTSIDE]),
        (
            {
                "namespaceSelector": {},
                "podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]},
            },
            [],
        ),
        (
            {
                "podSelector": {
                    "matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["server"]}]
                }
            },
            [CLIENT],
        ),
    ],
)
def test_a_peer_is_who_it_says(peer: dict[str, Any], reached_by: list[End]) -> None:
    policies = [incoming(**{"from": [peer]})]

    found = [each for each in (CLIENT, STRANGER, OUTSIDE) if reaches(policies, each, SERVER, 80)]
    assert found == reached_by


def test_ports_are_of_a_protocol_and_no_port_is_every_port() -> None:
    assert reaches([incoming(ports=[])], CLIENT, SERVER, 80)
    some = [incoming(ports=[{"port": 53, "protocol": "UDP"}, {"port": 80, "endPort": 90}])]

    assert reaches(some, CLIENT, SERVER, 53, "UDP") and reaches(some, CLIENT, SERVER, 85)
    assert not reaches(some, CLIENT, SERVER, 53) and not reaches(some, CLIENT, SERVER, 91)
