"""Several targets that learn from the same images at once."""

from __future__ import annotations

from collections.abc import Mapping

from dfka_dist.models.target import TargetNet
from dfka_dist.training.checkpoint import State
from dfka_dist.training.collectives import average_buffers
from dfka_dist.training.dual import Dual
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Supply
from dfka_dist.training.workshop import Workshop


def learned(
    workshop: Workshop,
    phase: str,
    supply: Supply,
    targets: Mapping[str, TargetNet],
    *,
    steps: int,
    rate: float,
    whole: bool,
) -> dict[str, State]:
    """A phase in which all learn; what became of their trunks and filters, or of all of them. The
    targets are not to be used any more.

    Args:
        targets: by names that are the same whenever the run goes on.
        rate: at first.
        whole: the teachers' own blocks learn too.
    """

    def made() -> dict[str, State]:
        learners = {name: _learner(workshop, t, rate, whole) for name, t in targets.items()}
        _go_through(workshop, phase, supply, learners, steps, rate)
        states = {}
        for name, each in learners.items():
            average_buffers(each.engine.network)
            states[name] = each.engine.state()
            each.engine.destroy()
        return states

    return workshop.ledger.once(phase, made)


def _learner(workshop: Workshop, target: TargetNet, rate: float, whole: bool) -> Dual:
    target.to(workshop.device).tails.requires_grad_(whole)
    return Dual(
        engine=workshop.engine(target if whole else target.trunk, rate),
        target=target,
        panel=workshop.panel,
        weights=workshop.config.losses,
    )


def _go_through(
    workshop: Workshop,
    name: str,
    supply: Supply,
    learners: Mapping[str, Dual],
    steps: int,
    rate: float,
) -> None:
    ledger = workshop.ledger
    held = {f"{name}-{index}": one.engine for index, one in enumerate(learners.values())}
    for key, engine in held.items():
        ledger.hold(key, engine)
    with ledger.phase(name, steps) as phase:
        batches = supply.batches(name, phase.left)
        for step, batch in zip(phase.steps(), batches, strict=False):
            own = cosine(step, steps, rate, 0.0)
            reports = [learner.learn(batch, own) for learner in learners.values()]
            workshop.diary.tell(step + 1, *reports[:1])
    ledger.release(*held)
