"""What DeepSpeed does to both networks is what plain PyTorch would have done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from dfka_dist import losses
from dfka_dist.config import LossWeights, TeacherSpec
from dfka_dist.models.generator import Stack
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.sources import build, load_state, read_weights
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.memory import Labelled
from distributed.game import EVERY_TERM, RATE, Draw, Game, Networks, draw, networks

STEPS = 3
TOLERANCE = 1e-5


class UncutTeacher:
    """A teacher's own network, entered at a block, in one graph with whatever stands before it."""

    def __init__(self, spec: TeacherSpec) -> None:
        self.task, self.preprocessing = spec.task, Preprocessing(spec.input)
        self.network = build(spec, spec.name).eval()
        load_state(self.network, read_weights(spec, spec.name).state, spec.name)
        self.network.requires_grad_(False)
        self.inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []
        for part in self.network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_pre_hook(
                    lambda layer, given: self.inputs.append((layer, given[0]))
                )

    def __call__(self, value: Tensor, depth: int = 0) -> tuple[Tensor, Tensor]:
        """Logits and embedding."""
        self.inputs.clear()
        value = value if depth else self.preprocessing(value)
        for block in self.network.block_names[depth:]:
            value = self.network.get_submodule(block)(value)
        embedding = value.mean(dim=(2, 3))
        return self.network.classifier(embedding), embedding

    def statistics(self) -> Tensor:
        """`losses.batch_norm` of the last call."""
        centred = [
            (x - layer.running_mean[:, None, None]).transpose(0, 1).flatten(1)
            for layer, x in self.inputs
        ]
        return losses.batch_norm(
            torch.tensor([x.shape[1] for x in centred]),
            torch.cat([x.sum(1) for x in centred]),
            torch.cat([x.square().sum(1) for x in centred]),
            torch.cat([layer.running_var for layer, _ in self.inputs]),
            [len(x) for x in centred],
        )


class PlainTorch:
    """The same game without engines, questions and cotangents."""

    def __init__(self, networks: Networks, specs: list[TeacherSpec]) -> None:
        self.generator = copy.deepcopy(networks.generator)
        self.target = copy.deepcopy(networks.target)
        self.teachers = {spec.name: UncutTeacher(spec) for spec in specs}
        self.optimizers = [
            torch.optim.SGD(network.parameters(), lr=RATE)
            for network in (self.generator, self.target.trunk)
        ]

    def generator_step(self, drawn: Draw) -> Labelled:
        self.generator.train()
        self.target.eval()
        stack = self.generator(drawn.noise, drawn.asked_for)
        student = self.target(stack.images)
        logits, terms = {}, []
        for name, teacher in self.teachers.items():
            logits[name], embedding = teacher(stack.images)
            task, kept = teacher.task, self.target.kept[name]
            terms.append(
                {
                    "one_hot": losses.one_hot(logits[name], drawn.targets[name], task),
                    "activation": losses.activation(embedding),
                    "entropy": losses.entropy(
                        losses.probabilities(logits[name], task).mean(0), task
                    ),
                    "discrete": losses.discrete(logits[name], task),
                    "batch_norm": teacher.statistics(),
                    "adversarial": losses.adversarial(student[name], logits[name][:, kept]),
                    "group": self._group(name, stack, logits[name]),
                }
            )
        total = {name: torch.stack([own[name] for own in terms]).mean() for name in terms[0]}
        total |= {
            "diversity": losses.diversity(stack.images, drawn.noise),
            "total_variation": losses.total_variation(stack.images),
            "l2": losses.l2(stack.images),
        }
        assert {*total, "distill"} == set(LossWeights.model_fields)
        self._step(0, total)
        return Labelled(stack.images.detach(), {n: own.detach() for n, own in logits.items()})

    def dual_step(self, labelled: Labelled) -> None:
        self.target.train()
        said = self.target(labelled.images)
        each = [
            losses.distill(said[n], labelled.logits[n][:, self.target.kept[n]], teacher.task)
            for n, teacher in self.teachers.items()
        ]
        self._step(1, {"distill": torch.stack(each).sum()})

    def _group(self, name: str, stack: Stack, image_logits: Tensor) -> Tensor:
        """The mean over groups of eq. 11's term, for one teacher."""
        values = []
        for index, feature in enumerate(stack.features):
            own = self.generator.filters[name][index](feature)
            logits, _ = self.teachers[name](own, depth=len(stack.features) - index)
            values.append(losses.group(logits, image_logits, self.teachers[name].task))
        return torch.stack(values).mean()

    def _step(self, which: int, terms: dict[str, Tensor]) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.stack(
            [getattr(EVERY_TERM, name) * term for name, term in terms.items()]
        ).sum().backward()
        self.optimizers[which].step()


@dataclass(frozen=True)
class Played:
    """A network's parameters or buffers before and after, by an engine and by plain PyTorch."""

    before: Tensor
    engine: Tensor
    plain: Tensor

    @property
    def error(self) -> float:
        """Distance of the two, relative to the way that was gone."""
        return float((self.engine - self.plain).norm() / (self.plain - self.before).norm())


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda stage: f"zero{stage}")
def played(
    request: pytest.FixtureRequest,
    process_group: None,
    specs: dict[str, TeacherSpec],
    load_teacher: Callable[[TeacherSpec], Teacher],
) -> dict[str, Played]:
    """Three alternating steps of both networks, generator and trunk."""
    chosen = [specs["first"], specs["second"]]
    teachers = LocalTeachers({spec.name: load_teacher(spec) for spec in chosen})
    made = networks(chosen, teachers)
    plain = PlainTorch(made, chosen)
    before = [plain.generator.state_dict(), plain.target.trunk.state_dict()]
    before = [{name: value.clone() for name, value in state.items()} for state in before]
    game = Game(made, teachers, zero_stage=request.param)
    for step in range(STEPS):
        drawn = draw(teachers, step)
        game.dual_step(game.generator_step(drawn).labelled)
        plain.dual_step(plain.generator_step(drawn))
    engines = [game.synthesis.engine.state(), game.dual.engine.state()]
    game.destroy()
    found = {}
    for name, network, old, new in zip(
        ("generator", "trunk"), (plain.generator, plain.target.trunk), before, engines, strict=True
    ):
        for kind, own in (
            ("parameters", network.named_parameters()),
            ("buffers", statistics(network)),
        ):
            values = dict(own)
            found[f"{name} {kind}"] = Played(
                *(flat({key: state[key] for key in values}) for state in (old, new, values))
            )
    return found


def statistics(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in network.named_buffers() if "running" in name]


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in state.values()])


@pytest.mark.parametrize(
    "what", ["generator parameters", "generator buffers", "trunk parameters", "trunk buffers"]
)
def test_alternating_steps_of_both_engines_are_those_of_plain_torch(
    played: dict[str, Played], what: str
) -> None:
    assert played[what].error <= TOLERANCE
