"""On which network interface workers talk to each other."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO = "GLOO_SOCKET_IFNAME"


class OwnInterface(TorchConfig):  # type: ignore[misc]
    """Gloo listens where Ray knows the node.

    It would look the machine's name up, which often is a name of the loopback, and tell workers on
    other machines to call themselves.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `TorchConfig`."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose)
        super().on_start(worker_group, backend_config)


def _choose() -> None:
    """What somebody has chosen counts."""
    name = interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)


def interface(address: str) -> str | None:
    """The name of the one that has an address; None where it has another outside."""
    for name, own in psutil.net_if_addrs().items():
        if any(each.address == address for each in own):
            return str(name)
    return None
