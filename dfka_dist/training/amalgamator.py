"""One whole run on one worker: joint training, regrouping, fine-tuning. It knows no launcher."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfka_dist.config import RunConfig
from dfka_dist.losses import LossReport
from dfka_dist.models.filters import Shape
from dfka_dist.models.generator import GroupStackGenerator
from dfka_dist.models.target import Architecture, TargetNet
from dfka_dist.teachers.interface import Pending, Question, TeacherOutput, Teachers
from dfka_dist.training.branching import build_target, design_target
from dfka_dist.training.collectives import average_buffers, global_sum, rank_and_size
from dfka_dist.training.draws import Draws
from dfka_dist.training.dual import Dual
from dfka_dist.training.engines import Engine, fitting
from dfka_dist.training.memory import Labelled, SampleMemory
from dfka_dist.training.probe import MOMENTS, PART, ProbeSet
from dfka_dist.training.schedule import cosine, weights_at
from dfka_dist.training.streams import Streams
from dfka_dist.training.synthesis import Synthesis

log = logging.getLogger(__name__)

Record = dict[str, Any]
SAMPLES = 10  # even: two neighbours have the same label
"""Synthesized images shown for each label."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves, on every rank alike."""

    design: Architecture
    state: dict[str, Tensor]
    samples: Tensor
    """(labels * SAMPLES, C, H, W) in [0, 1], label after label."""
    data_free: dict[str, Any]
    phases: list[dict[str, Any]]
    cpu_seconds: float
    """Of all workers."""


class Amalgamator:
    """Trains generator and dual generator in turns, then makes the target of them.

    Args:
        teachers: local or served.
        report: is given one record every `training.report_every` steps, on rank 0.
        device: of the networks.
    """

    def __init__(
        self,
        config: RunConfig,
        teachers: Teachers,
        report: Callable[[Record], None],
        device: torch.device | None = None,
    ) -> None:
        self._config, self._teachers, self._report = config, teachers, report
        self._device = device or torch.device("cpu")
        self._precision = fitting(config.training.precision, self._device)
        log.info("computing in %s on %s", self._precision, self._device)
        rank, size = rank_and_size()
        share = config.training.batch_size // size
        self._columns = range(rank * share, (rank + 1) * share)
        self._design = design_target(config, teachers.descriptions)
        specs = {name: description.spec for name, description in teachers.descriptions.items()}
        self._tasks = {name: spec.task for name, spec in specs.items()}
        self._draws = Draws(config, self._design.labels, specs, self._device)
        capacity = config.training.memory_megabytes * 2**20 // size
        self._memory = SampleMemory(
            columns=self._columns, capacity=capacity, streams=Streams(config.run.seed)
        )
        self._probe = ProbeSet()
        self._phases: list[dict[str, Any]] = []
        self._steps_before = 0
        self._began = time.monotonic()

    def run(self) -> Outcome:
        """The whole run."""
        generator = self._engine(
            self._new_generator(), self._config.training.generator_rate, betas=(0.5, 0.99)
        )
        with self._phase("joint", self._config.training.steps):
            trunk = self._joint(generator)
        with self._phase("fine_tune", self._config.training.fine_tune_steps):
            state = self._fine_tune(generator, trunk)
        target = TargetNet(self._design).to(self._device)
        target.load_state_dict(state)
        samples = self._draws.sheet(_plain(generator), SAMPLES)
        generator.destroy()
        data_free = self._probe.judge(target.eval(), self._teachers)
        cpu = global_sum(torch.tensor(time.process_time(), device=self._device)).item()
        return Outcome(self._design, state, samples, data_free, self._phases, cpu)

    def _joint(self, generator: Engine) -> dict[str, Tensor]:
        training = self._config.training
        target = self._new_target()
        dual_engine = self._engine(target.trunk, training.dual_rate)
        synthesis = Synthesis(
            engine=generator,
            teachers=self._teachers,
            weights=self._config.losses,
            precision=self._precision,
        )
        dual = Dual(
            engine=dual_engine, target=target, tasks=self._tasks, weights=self._config.losses
        )
        moments = {round(training.steps * (i + 1) / MOMENTS) for i in range(MOMENTS)}
        for step in range(training.steps):
            rate = cosine(step, training.steps, training.dual_rate, 0.0)
            half = training.dual_steps // 2
            generator.network.train()
            noise, asked_for = self._draws.latents("joint", step, self._columns)
            batch = synthesis.ask(noise, asked_for, self._draws.targets(asked_for))
            # The student learns from memory while the teachers look at the new images, and again
            # while they carry gradients back. Which images meet which weights depends on nothing
            # but the step.
            dual_reports = self._study(dual, step, range(half), rate)
            weights = weights_at(self._config.losses, step, training.steps)
            criticism = synthesis.criticise(batch, target, weights)
            dual_reports += self._study(dual, step, range(half, training.dual_steps), rate)
            synthesis.learn(
                batch,
                criticism,
                cosine(step, training.steps, training.generator_rate, training.generator_rate / 10),
            )
            self._memory.add(criticism.labelled)
            if step + 1 in moments:
                self._probe.add(
                    self._draws.synthesize(_plain(generator), "probe", step, range(PART))
                )
            self._tell("joint", step + 1, training.steps, [criticism.report, *dual_reports[-1:]])
        average_buffers(target.trunk)
        state = dual_engine.state()
        dual_engine.destroy()
        return state

    def _fine_tune(self, generator: Engine, trunk: dict[str, Tensor]) -> dict[str, Tensor]:
        training = self._config.training
        target = self._new_target()
        target.trunk.load_state_dict(trunk)
        if not training.fine_tune_steps:
            return {
                name: value.detach().cpu().clone() for name, value in target.state_dict().items()
            }
        target.tails.requires_grad_(True)
        engine = self._engine(target, training.fine_tune_rate)
        dual = Dual(engine=engine, target=target, tasks=self._tasks, weights=self._config.losses)
        waiting: list[tuple[Tensor, Pending[dict[str, TeacherOutput]]]] = []
        for step in range(training.fine_tune_steps):
            while (
                len(waiting) < self._config.serving.in_flight
                and step + len(waiting) < training.fine_tune_steps
            ):
                waiting.append(self._ask_ahead(generator, step + len(waiting)))
            images, pending = waiting.pop(0)
            logits = {n: a.logits for n, a in pending.result().items() if a.logits is not None}
            batch = Labelled.joined(Labelled(images, logits), self._memory.draw("fine_tune", step))
            rate = cosine(step, training.fine_tune_steps, training.fine_tune_rate, 0.0)
            self._tell("fine_tune", step + 1, training.fine_tune_steps, [dual.learn(batch, rate)])
        average_buffers(target)
        state = engine.state()
        engine.destroy()
        return state

    def _ask_ahead(
        self, generator: Engine, step: int
    ) -> tuple[Tensor, Pending[dict[str, TeacherOutput]]]:
        images = self._draws.synthesize(_plain(generator), "fine_tune", step, self._columns)
        names = tuple(self._teachers.descriptions)
        return images, self._teachers.forward(Question(images, names, precision=self._precision))

    def _study(self, dual: Dual, step: int, turns: range, rate: float) -> list[LossReport]:
        if not len(self._memory):
            return []
        training = self._config.training
        reports = []
        for turn in turns:
            fresh = self._memory.newest(turn, training.fresh_every)
            old = self._memory.draw(f"memory.{turn}", step, turn, training.remember_every)
            reports.append(dual.learn(Labelled.joined(fresh, old), rate))
        return reports

    def _new_generator(self) -> GroupStackGenerator:
        descriptions = list(self._teachers.descriptions.values())
        reference = max(descriptions, key=lambda description: description.parameters)
        spec, image = self._config.generator, self._design.input
        shapes = [(image.channels, image.size, image.size), *reference.shapes[1:-1]]
        filtered: dict[str, Sequence[Shape]] = {}
        if self._config.losses.group:
            filtered = {d.spec.name: [shapes[0], *d.shapes[1:-1]] for d in descriptions}
        with self._seeded(1):
            return GroupStackGenerator(
                latent=spec.latent,
                shapes=shapes,
                teachers=filtered,
                labels=len(self._design.labels),
                width=spec.width,
                label_scale=spec.label_scale,
            ).to(self._device)

    def _new_target(self) -> TargetNet:
        with self._seeded(2):
            return build_target(self._design, self._teachers).to(self._device)

    @contextmanager
    def _seeded(self, salt: int) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(1000 * self._config.run.seed + salt)
            yield

    def _engine(
        self, network: torch.nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> Engine:
        training = self._config.training
        return Engine(
            network,
            micro_batch=len(self._columns),
            zero_stage=training.zero_stage,
            precision=self._precision,
            rate=rate,
            betas=betas,
        )

    @contextmanager
    def _phase(self, name: str, steps: int) -> Iterator[None]:
        began = time.monotonic()
        self._phase_began, self._waited = began, self._teachers.waited
        yield
        self._steps_before += steps
        self._phases.append(
            {"name": name, "steps": steps, "seconds": round(time.monotonic() - began, 3)}
        )

    def _tell(self, phase: str, step: int, steps: int, reports: list[LossReport]) -> None:
        if (step % self._config.training.report_every and step != steps) or self._columns.start:
            return
        now = time.monotonic()
        elapsed = now - self._phase_began
        terms = {
            name: round(value.item(), 6)
            for report in reports
            for name, value in report.terms.items()
        }
        self._report(
            {
                "phase": phase,
                "step": step,
                "steps": steps,
                "global_step": self._steps_before + step,
                "seconds": round(now - self._began, 3),
                "losses": terms,
                "images_per_second": round(step * self._config.training.batch_size / elapsed, 1),
                "waits": {"teachers": round((self._teachers.waited - self._waited) / elapsed, 4)},
            }
        )


def _plain(generator: Engine) -> GroupStackGenerator:
    assert isinstance(generator.network, GroupStackGenerator)
    return generator.network
