"""Nodes on one machine that share nothing but a wire: each in a network, a mount and a process
namespace of its own, with a private /tmp, home and /dev/shm, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
SUBNET = "10.213.7"
BRIDGE, BRIDGE_ADDRESS = "dfka-br", f"{SUBNET}.1"
DISK, DISK_MEGABYTES = "/run/dfka-disk", 50
"""Small, and shared by all nodes: for one checkpoint of a run here, and not for two."""
PRIVATE = ("/tmp", "/root", "/dev/shm")
EXTENSIONS = Path.home() / ".cache" / "torch_extensions"
"""What DeepSpeed has compiled; every node has a copy, as every pod has an image."""
FURNISH = """
set -e
mount --make-rprivate /
stage=$(mktemp -d /run/dfka-XXXXXX)
n=0
for shared in {shared}; do mkdir $stage/$n; mount --rbind $shared $stage/$n; n=$((n+1)); done
# With its times, or it is compiled again.
[ -d {extensions} ] && cp -a {extensions} $stage/extensions
# Another run may be compiling.
[ -d $stage/extensions ] && find $stage/extensions -name lock -delete
for private in {private}; do mount -t tmpfs -o size=4g tmpfs $private; done
chmod 1777 /tmp /dev/shm
n=0
for shared in {shared}; do mkdir -p $shared; mount --rbind $stage/$n $shared; n=$((n+1)); done
[ -d $stage/extensions ] && mkdir -p $(dirname {extensions}) && mv $stage/extensions {extensions}
n=0
for shared in {shared}; do umount -l $stage/$n; rmdir $stage/$n; n=$((n+1)); done
rmdir $stage
ip link set lo up
echo ready
trap '' CHLD  # whoever has lost its parent is reaped by the system
exec sleep infinity
"""


def missing() -> str | None:
    """What this machine lacks for such nodes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    absent = [tool for tool in ("ip", "tc", "unshare", "nsenter") if shutil.which(tool) is None]
    return f"there is no {absent[0]} (iproute2, util-linux)" if absent else None


def _do(*command: str | Path | int) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


class Node:
    """One machine, as far as a process can tell.

    Args:
        number: of its address, from 2.
    """

    def __init__(self, number: int) -> None:
        self.address = f"{SUBNET}.{number}"
        self.wire = f"dfka-{number}"
        script = FURNISH.format(
            shared=" ".join(map(str, _shared())), private=" ".join(PRIVATE), extensions=EXTENSIONS
        )
        # Of its own processes too: Ray looks among them for its address.
        kinds = ["--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation=private"]
        command = ["unshare", *kinds, "--kill-child", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the node could not be furnished"
        (inner,) = psutil.Process(self._holder.pid).children()
        self._pid = inner.pid
        self._weak: subprocess.Popen[str] | None = None
        self.mend()

    def command(self, *words: str | Path) -> list[str]:
        """What runs a command there."""
        target = ["nsenter", "--mount", "--net", "--pid", "--target", str(self._pid)]
        return [*target, f"--wdns={REPOSITORY}", *map(str, words)]

    def start(
        self, *words: str | Path, env: Mapping[str, str], **more: Any
    ) -> subprocess.Popen[str]:
        """Run a command there."""
        return subprocess.Popen(self.command(*words), env=dict(env), text=True, **more)

    def path(self, place: str) -> Path:
        """A file of the node's, as it is seen from here."""
        return Path(f"/proc/{self._pid}/root{place}")

    def processes(self) -> list[psutil.Process]:
        """All that run there, but for the one that holds the node."""
        own, held = _namespace(self._pid), (self._pid, self._holder.pid)
        return [p for p in psutil.process_iter() if p.pid not in held and _namespace(p.pid) == own]

    def kill(self) -> None:
        """Let everything that runs there die at once; the node can be used again."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def cut(self) -> None:
        """Take the wire out."""
        _do("ip", "link", "set", self.wire, "down")

    def join(self) -> None:
        """Put it in again."""
        _do("ip", "link", "set", self.wire, "up")

    def mend(self) -> None:
        """Give the node, on which nothing runs, a good wire."""
        self._unplug()
        _do("ip", "link", "add", self.wire, "type", "veth", "peer", "name", "dfka-in")
        self._plug_in()

    def weaken(self, milliseconds: float, loss: float) -> None:
        """Give the node, on which nothing runs, a wire on which every frame takes so long, each
        way, and a share `loss` of them is lost."""
        self._unplug()
        program = [sys.executable, Path(__file__).with_name("weak_wire.py"), self.wire, "dfka-in"]
        self._weak = subprocess.Popen(
            [*map(str, program), str(milliseconds), str(loss)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._weak.stdout is not None and self._weak.stdout.readline() == "ready\n"
        self._plug_in()

    def remove(self) -> None:
        """End the node and all that runs there."""
        self.kill()
        self._unplug()
        self._holder.kill()
        self._holder.wait()

    def _plug_in(self) -> None:
        """One end into the bridge, the other into the node."""
        _do("ip", "link", "set", self.wire, "master", BRIDGE, "up")
        _do("ip", "link", "set", "dfka-in", "netns", self._pid, "name", "eth0")
        inside = ["nsenter", "--net", "--target", str(self._pid)]
        _do(*inside, "ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        _do(*inside, "ip", "link", "set", "eth0", "up")

    def _unplug(self) -> None:
        if self._weak is not None:
            self._weak.communicate()
            self._weak = None
        subprocess.run(["ip", "link", "del", self.wire], capture_output=True)


@contextmanager
def network(nodes: int) -> Iterator[list[Node]]:
    """So many nodes, joined by a bridge whose address `BRIDGE_ADDRESS` is this process's."""
    made: list[Node] = []
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
    subprocess.run(["umount", DISK], capture_output=True)
    Path(DISK).mkdir(exist_ok=True)
    # Before there are nodes, which have it from here.
    _do("mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", DISK)
    _do("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        _do("ip", "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE)
        _do("ip", "link", "set", BRIDGE, "up")
        for number in range(nodes):
            made.append(Node(number + 2))
        yield made
    finally:
        for node in made:
            node.remove()
        _do("ip", "link", "del", BRIDGE)
        _do("umount", DISK)
        Path(DISK).rmdir()


def _shared() -> list[Path]:
    """What all nodes see: the program, as an image would hold it."""
    places = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    return [place for place in sorted(places) if any(place.is_relative_to(p) for p in PRIVATE)]


def _namespace(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # it ended meanwhile
        return None
