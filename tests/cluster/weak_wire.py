"""python weak_wire.py NEAR FAR MILLISECONDS LOSS

A bad wire between two TAP devices, for kernels without netem: every frame takes so long, each way,
and of LOSS, a share, none arrives. Says `ready` when both devices are there, and ends when its
standard input does.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import selectors
import struct
import sys
import time

SET_DEVICE = 0x400454CA  # TUNSETIFF
TAP, NO_HEADER = 0x0002, 0x1000
FRAME = 2048
"""Bytes; without offloading no frame is longer than the device's MTU and its header."""


def tap(name: str) -> int:
    """A new TAP device, as long as its descriptor is open."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, SET_DEVICE, struct.pack("16sH22x", name.encode(), TAP | NO_HEADER))
    return descriptor


def carry(ends: tuple[int, int], seconds: float, loss: float) -> None:
    """Frames from either end to the other, until standard input ends."""
    under_way: list[tuple[float, int, int, bytes]] = []
    chance, numbers = random.Random(0), 0
    selector = selectors.DefaultSelector()
    for descriptor in (*ends, sys.stdin.fileno()):
        selector.register(descriptor, selectors.EVENT_READ)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for key, _ in selector.select(wait):
            if key.fd == sys.stdin.fileno():
                return
            frame = os.read(key.fd, FRAME)
            if chance.random() >= loss:
                other = ends[1] if key.fd == ends[0] else ends[0]
                numbers += 1
                heapq.heappush(under_way, (time.monotonic() + seconds, numbers, other, frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(under_way)
            try:
                os.write(other, frame)
            except BlockingIOError:
                continue  # a full queue loses frames, as in a wire
            except OSError:
                continue  # the device is down


if __name__ == "__main__":
    near, far = tap(sys.argv[1]), tap(sys.argv[2])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry((near, far), float(sys.argv[3]) / 1000, float(sys.argv[4]))
