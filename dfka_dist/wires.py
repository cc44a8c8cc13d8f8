"""On which network interface workers talk to each other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch._C._distributed_c10d import TCPStore

GLOO = "GLOO_SOCKET_IFNAME"
_SERVED: list[TCPStore] = []
"""The store of rank 0's process, until it joins the others."""


class OwnInterface(TorchConfig):  # type: ignore[misc]
    """Gloo, and the store by which workers find each other, listen where Ray knows the node.

    Gloo would look the machine's name up, which often is a name of the loopback, and tell workers
    on other machines to call themselves; torch's store would listen everywhere.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `TorchConfig`."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        size, seconds = len(worker_group), backend_config.timeout_s
        address, port = worker_group.execute_single(0, _serve, size=size, seconds=seconds)
        worker_group.execute(_choose, address=address, port=port)
        joining = [
            worker_group.execute_single_async(
                rank, _join, size=size, backend=backend_config.backend, seconds=seconds
            )
            for rank in range(size)
        ]
        ray.get(joining)


def _serve(size: int, seconds: float) -> tuple[str, int]:
    """Begin the store in this process; where it is."""
    address = ray.util.get_node_ip_address()
    # One that is another outside cannot be listened at.
    own = address if interface(address) is not None else ""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((own, 0), family=family)
    port = int(listening.getsockname()[1])
    _SERVED[:] = [_store(address, port, size, seconds, master_listen_fd=listening.detach())]
    return address, port


def _choose(address: str, port: int) -> None:
    """What somebody has chosen counts; DeepSpeed looks for the store's place too."""
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    name = interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)


def _join(size: int, backend: str, seconds: float) -> None:
    """Meet the others, as Ray Train's own would by torch's store."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank = int(os.environ["RANK"])
    store = _SERVED.pop() if rank == 0 else _store(address, port, size, seconds)
    timeout = timedelta(seconds=seconds)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _store(
    address: str, port: int, size: int, seconds: float, master_listen_fd: int | None = None
) -> TCPStore:
    return TCPStore(
        address,
        port,
        size,
        is_master=master_listen_fd is not None,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=master_listen_fd,
    )


def interface(address: str) -> str | None:
    """The name of the one that has an address; None where it has another outside."""
    for name, own in psutil.net_if_addrs().items():
        if any(each.address == address for each in own):
            return str(name)
    return None
