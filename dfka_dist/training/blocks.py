"""The dual generator block by block: recipe paper's dual stage, and filters short of depth B."""

from __future__ import annotations

from functools import partial

import torch

from dfka_dist.models.dual import DualBlock
from dfka_dist.models.generator import Stack
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.target import trunk
from dfka_dist.training.checkpoint import State, under
from dfka_dist.training.collectives import average_buffers, global_mean
from dfka_dist.training.dual import BlockDual, block_losses
from dfka_dist.training.ledger import Phase
from dfka_dist.training.regroup import DualState
from dfka_dist.training.schedule import cosine
from dfka_dist.training.supply import Supply, Synthesized
from dfka_dist.training.workshop import Workshop

MEASURED = 4
"""Batches on which the depths of the branches are compared."""


def train_blocks(workshop: Workshop, supply: Synthesized, phase: Phase) -> DualState:
    """Blocks T^1..T^B one after another, each by both streams, those before it frozen (eq. 16)."""
    dual = DualState()
    for depth in range(1, workshop.branching.trunk.depth + 1):
        train = partial(_train_block, workshop, supply, phase, dual, depth)
        (made,) = workshop.ledger.once(f"dual-{depth}", train).values()
        dual.add(DualState.of_flat(made))
    return dual


def _train_block(
    workshop: Workshop, supply: Synthesized, phase: Phase, dual: DualState, depth: int
) -> dict[str, State]:
    steps = workshop.config.training.block_steps
    before = (depth - 1) * steps
    part = range(before, before + steps)
    left = phase.within(part)
    stacks = supply.fresh(f"dual.{depth}", range(left.start - before, steps))
    block = _new_block(workshop, dual, depth, frozen=depth - 1, generator=supply.generator.shapes)
    learner = _learner(workshop, block, depth)
    workshop.ledger.hold(f"block-{depth}", learner.engine)
    for step, (stack, pending) in zip(phase.steps(part), stacks, strict=False):
        rate = cosine(step - before, steps, workshop.config.training.dual_rate, 0.0)
        link = link_into(workshop, stack, depth)
        report = learner.learn(pending.result(), link, rate)
        workshop.diary.tell(step + 1, report)
    workshop.ledger.release(f"block-{depth}")
    return {"dual": _taken(learner, depth, with_block=True).flat()}


def train_filters(workshop: Workshop, dual: DualState, supply: Supply, steps: int) -> None:
    """Filters at the depths short of B of a dual generator that learns no more."""
    made = workshop.ledger.once("filters", partial(_train_filters, workshop, dual, supply, steps))
    for state in made.values():
        dual.add(DualState.of_flat(state))


def _train_filters(
    workshop: Workshop, dual: DualState, supply: Supply, steps: int
) -> dict[str, State]:
    depths, ledger = range(1, workshop.branching.trunk.depth), workshop.ledger
    learners = {
        depth: _learner(workshop, _new_block(workshop, dual, depth, frozen=depth), depth)
        for depth in depths
    }
    for depth, learner in learners.items():
        ledger.hold(f"filters-{depth}", learner.engine)
    with ledger.phase("filters", steps) as phase:
        batches = supply.batches("filters", phase.left)
        for step, batch in zip(phase.steps(), batches, strict=False):
            rate = cosine(step, steps, workshop.config.training.dual_rate, 0.0)
            reports = [learner.learn(batch, None, rate) for learner in learners.values()]
            workshop.diary.tell(step + 1, *reports[-1:])
    ledger.release(*(f"filters-{depth}" for depth in depths))
    return {str(d): _taken(one, d, with_block=False).flat() for d, one in learners.items()}


def dual_losses(workshop: Workshop, dual: DualState, supply: Supply) -> dict[str, dict[int, float]]:
    """L_d^{b,m} of stream 1 on unseen images, per teacher and depth."""
    losses: dict[str, dict[int, float]] = {name: {} for name in workshop.panel.voices}
    batches = list(supply.unseen("measure", range(MEASURED)))
    for depth in range(1, workshop.branching.trunk.depth + 1):
        block = _new_block(workshop, dual, depth, frozen=depth)
        for name in losses:
            block.filters[name].load_state_dict(dual.filters[depth, name])
        entries = _entries(workshop, depth)
        weights = workshop.config.losses
        found = [block_losses(block, batch, workshop.panel, entries, weights) for batch in batches]
        for name in found[0]:
            own = torch.stack([each[name] for each in found]).mean()
            losses[name][depth] = global_mean(own).item()
    return losses


def _new_block(
    workshop: Workshop,
    dual: DualState,
    depth: int,
    *,
    frozen: int,
    generator: list[tuple[int, int, int]] | None = None,
) -> DualBlock:
    """T^1..T^depth, those that are trained already as they are.

    Args:
        generator: shapes of the generator at its own depths 0..B-1, where the link counts.
    """
    config, branching = workshop.config, workshop.branching
    design = branching.design()
    with workshop.seeded(100 + depth):
        blocks = trunk(config.target.backbone, config.target.arguments, design.input)[:depth]
        link = None
        if generator and len(generator) > 1 and depth > 1 and config.losses.link:
            place = generator_depth(depth - 1, branching.trunk.depth, len(generator))
            link = (generator[place], branching.trunk.shapes[depth - 1])
        block = DualBlock(
            Preprocessing(design.input),
            blocks,
            frozen=frozen,
            source=branching.trunk.shapes[depth],
            wanted=branching.wanted(depth),
            adapt=branching.adapts(depth),
            link=link,
        )
    for number, own in enumerate(block.blocks, 1):
        if number in dual.blocks:
            own.load_state_dict(dual.blocks[number])
    return block.to(workshop.device)


def _learner(workshop: Workshop, block: DualBlock, depth: int) -> BlockDual:
    engine = workshop.engine(block, workshop.config.training.dual_rate)
    entries = _entries(workshop, depth)
    weights = workshop.config.losses
    return BlockDual(engine=engine, panel=workshop.panel, entries=entries, weights=weights)


def _taken(learner: BlockDual, depth: int, *, with_block: bool) -> DualState:
    """What a learner that is not needed any more has learned."""
    average_buffers(learner.engine.network)
    state = learner.engine.state()
    learner.engine.destroy()
    filters = {(depth, name): under(state, f"filters.{name}.") for name in learner.entries}
    return DualState({depth: under(state, f"blocks.{depth - 1}.")} if with_block else {}, filters)


def _entries(workshop: Workshop, depth: int) -> dict[str, int]:
    return {name: workshop.branching.entry(name, depth) for name in workshop.panel.voices}


def link_into(workshop: Workshop, stack: Stack, depth: int) -> torch.Tensor | None:
    """F_2 = G^{B+1-b}..G^1(z) of eq. 15, which lies where block b begins; for b = 1 the image. None
    where it does not count, or where a generator of one group has nothing inside."""
    if not workshop.config.losses.link:
        return None
    if depth == 1:
        return stack.images
    groups = len(stack.features) + 1
    if groups == 1:
        return None
    place = generator_depth(depth - 1, workshop.branching.trunk.depth, groups)
    return stack.features[groups - place - 1].feature


def generator_depth(depth: int, of: int, groups: int) -> int:
    """The generator's own depth 1..B-1 that lies as deep as `depth` of a trunk of `of` blocks."""
    return min(groups - 1, max(1, (2 * depth * groups + of) // (2 * of)))
