"""One step of the dual generator, or of the target in its place: distil what the teachers said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from dfka_dist import losses
from dfka_dist.config import LossWeights
from dfka_dist.losses import LossReport
from dfka_dist.models.dual import DualBlock
from dfka_dist.models.filters import Filtered
from dfka_dist.models.target import TargetNet
from dfka_dist.teachers.interface import TeacherOutput, Wanted
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from dfka_dist.training.objective import refuse_non_finite
from dfka_dist.training.panel import Asked, Cotangents, Panel, answered, taken
from dfka_dist.training.synthesis import cotangents, leaf
from dfka_dist.training.turns import listened_to


class Lesson:
    """What the teachers said of a batch, and the loss of whoever says something else."""

    def __init__(self, batch: Labelled, panel: Panel, weights: LossWeights) -> None:
        self._weights = weights
        self._voices = panel.voices
        self._rows = {name: panel.rows(name, batch.homes) for name in self._voices}
        self._truth = {
            name: voice.heard(taken(batch.logits[name], self._rows[name]))
            for name, voice in self._voices.items()
        }

    def report(self, *streams: Mapping[str, Tensor]) -> LossReport:
        """Eq. 14 of every stream, eq. 16 of them together.

        Args:
            streams: per teacher the logits (n, K) that are heard of it, for the images that concern
                it; of the images, and perhaps of the link.
        """
        return losses.weigh(
            self._weights,
            {
                "distill": lambda: self._joined([self._block(self.parts(s)) for s in streams]),
                "logits": lambda: self._joined([self._block(self._distances(s)) for s in streams]),
            },
        )

    def parts(self, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 13, per teacher."""
        return {
            name: self._mean(name, said, partial(losses.distill, task=voice.task))
            for name, voice in self._voices.items()
        }

    def concerned(self, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of logits (N, K) those for images that concern the teacher."""
        return {name: taken(said[name], self._rows[name]) for name in self._voices}

    def _distances(self, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._mean(name, said, losses.logits) for name in self._voices}

    def _mean(
        self,
        name: str,
        said: Mapping[str, Tensor],
        term: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """A term over the images that concern a teacher; nothing where none does, which happens
        where images are not drawn in equal parts by home, nor of a teacher that was not asked."""
        own = said.get(name)
        if own is None:
            return self._truth[name].new_zeros(())
        return term(own, self._truth[name]) if len(own) else own.sum()

    def _block(self, parts: Mapping[str, Tensor]) -> Tensor:
        return losses.block(parts, self._weights)

    def _joined(self, streams: list[Tensor]) -> Tensor:
        own, *link = streams
        return losses.both_streams(own, link[0], self._weights.link) if link else own


class Dual:
    """The student's side of the game where the tails are the target's own.

    Args:
        engine: drives `target.trunk`, the dual generator, or `target` itself when it is fine-tuned.
    """

    def __init__(
        self, *, engine: Engine, target: TargetNet, panel: Panel, weights: LossWeights
    ) -> None:
        self.engine, self.target = engine, target
        self._panel, self._weights = panel, weights

    def learn(self, batch: Labelled, rate: float) -> LossReport:
        """Step towards the teachers' answers to a batch.

        Raises:
            NonFiniteLoss: on every rank, before anything moved.
        """
        self.engine.network.train()
        self.target.tails.eval()  # a teacher's own blocks keep their statistics, and drop nothing
        outputs: dict[str, Tensor] = self.engine(batch.images)
        leaves = {name: value.detach().requires_grad_() for name, value in outputs.items()}
        said = leaves if self.engine.network is self.target else self.target.judge(leaves)
        lesson = Lesson(batch, self._panel, self._weights)
        report = lesson.report(lesson.concerned(said))
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        gradients = [
            leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            for leaf in leaves.values()
        ]
        self.engine.step(list(outputs.values()), gradients, rate)
        return report


class BlockDual:
    """The student's side of the game, one block at a time, where the tails are served (eq. 12).

    Args:
        engine: drives a `DualBlock`.
        entries: the depth at which each teacher goes on behind the block.
    """

    def __init__(
        self, *, engine: Engine, panel: Panel, entries: Mapping[str, int], weights: LossWeights
    ) -> None:
        assert isinstance(engine.network, DualBlock)
        self.engine, self._block = engine, engine.network
        self.entries, self._panel, self._weights = entries, panel, weights
        counting = {name: depth for name, depth in entries.items() if weights.lambda_of(name)}
        self._asked = counting or dict(entries)  # without any there would be nothing to carry back

    def learn(self, batch: Labelled, link: Tensor | None, rate: float) -> LossReport:
        """Step the block towards the teachers' answers to a batch, by both streams (eq. 16).

        Args:
            link: (N, C, H, W), the generator's feature F_2 in front of this block, if it counts;
                the images themselves for the first block, whose streams are the same.

        Raises:
            NonFiniteLoss: on every rank, before anything moved.
        """
        self._block.train()
        same = link is batch.images
        own, linked = self.engine(batch.images, None if same else link)
        streams = [own] if linked is None else [own, linked]
        asked = [self._ask(stream, batch) for stream in streams]
        leaves = [
            [{n: leaf(a) for n, a in each.answer.result().items()} for each in questions]
            for questions in asked
        ]
        said = [_kept(answers, self._panel) for answers in leaves]
        lesson = Lesson(batch, self._panel, self._weights)
        report = lesson.report(*said, *(said if same else []))
        refuse_non_finite(report)
        report.total.backward()  # type: ignore[no-untyped-call]
        collected = Cotangents()
        back = [
            (stream, each, self._panel.teachers.pullback(each.question, _all_cotangents(own)))
            for stream, questions, answers in zip(streams, asked, leaves, strict=True)
            for each, own in zip(questions, answers, strict=True)
        ]
        for stream, each, pending in back:
            collected.add_feature(stream, each, pending.result())
        for stream in streams:
            collected.add_nothing(stream, stream.gates.keys() - self._asked.keys())
        self.engine.step(*collected.pairs(), rate)
        return report

    def _ask(self, stream: Filtered, batch: Labelled) -> list[Asked]:
        wanted = Wanted(gradient=True)
        return self._panel.about_features(stream, batch.homes, self._asked, wanted)


def block_losses(
    block: DualBlock,
    batch: Labelled,
    panel: Panel,
    entries: Mapping[str, int],
    weights: LossWeights,
) -> dict[str, Tensor]:
    """L_d^{b,m} of stream 1 per teacher (eq. 13), on the running statistics; nothing moves."""
    with listened_to(block), torch.no_grad():
        own, _ = block(batch.images)
    asked = panel.about_features(own, batch.homes, entries, Wanted())
    said = _kept([each.answer.result() for each in asked], panel)
    return Lesson(batch, panel, weights).parts(said)


def _kept(answers: list[dict[str, TeacherOutput]], panel: Panel) -> dict[str, Tensor]:
    """Per teacher its logits (n, K) that are heard."""
    return {
        name: panel.voices[name].heard(answered(answer))
        for own in answers
        for name, answer in own.items()
    }


def _all_cotangents(leaves: Mapping[str, TeacherOutput]) -> dict[str, TeacherOutput]:
    return {name: cotangents(each) for name, each in leaves.items()}
