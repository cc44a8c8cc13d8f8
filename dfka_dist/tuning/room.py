"""How many trials run at once."""

from __future__ import annotations

from collections.abc import Sequence

from dfka_dist import machine
from dfka_dist.errors import InputError
from dfka_dist.preparing import Prepared
from dfka_dist.teachers.nodes import NodeResources

_MOST = 256


def own(nodes: Sequence[NodeResources]) -> list[NodeResources]:
    """The node of a private cluster, whose CPUs are shares, with the cores that it really has."""
    return [node.model_copy(update={"cpus": float(machine.cores())}) for node in nodes]


def concurrent(ready: Prepared, nodes: Sequence[NodeResources]) -> tuple[int, str]:
    """Trials that find room beside the teachers on these nodes, and why as many.

    Raises:
        InputError: more are asked for than there is room for.
    """
    config, search = ready.config, ready.config.search
    assert search is not None
    fits = max(1, _fitting(ready, nodes))
    training = config.training
    workers = max(training.worker_range)
    cpus = sum(node.cpus for node in nodes)
    why = (
        f"trials at once beside the teachers: {fits} (workers of each: {workers}, of "
        f"{training.worker_cpus:g} CPU and {training.worker_gpus} GPU; nodes: {len(nodes)}, with "
        f"{cpus:g} CPU and {sum(node.gpus for node in nodes):g} GPU)"
    )
    grows = config.serving.wait_for_nodes
    if search.concurrent is not None and search.concurrent > fits and not grows:
        raise InputError("search.concurrent", f"{search.concurrent} do not fit; {why}", f"{fits}")
    if search.concurrent is not None:
        why += f"; asked for: {search.concurrent}"
        why += ", some of which wait for nodes to come" if search.concurrent > fits else ""
    return search.concurrent or fits, why


def threads(ready: Prepared, trials: int) -> int | None:
    """CPU threads of every worker, where `training.threads` does not say and several trials share a
    machine; None for what a run alone takes."""
    training = ready.config.training
    if training.worker_gpus or trials == 1:
        return None
    if ready.config.run.address:
        return max(1, int(training.worker_cpus))
    return max(1, (machine.cores() - 1) // (trials * max(training.worker_range)))


def _fitting(ready: Prepared, nodes: Sequence[NodeResources]) -> int:
    """As many as a placement is found for all workers of."""
    training = ready.config.training
    for count in range(1, _MOST + 1):
        workers = count * max(training.worker_range)
        asked = training.model_copy(update={"workers": workers})
        serving = ready.config.serving.model_copy(update={"wait_for_nodes": False})
        config = ready.config.model_copy(update={"training": asked, "serving": serving})
        try:
            ready.replaced(config).plan(nodes)
        except InputError:
            return count - 1
    return _MOST
