"""What DeepSpeed does to both networks is what plain PyTorch would have done."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest
import torch
from torch import Tensor, nn

from dfka_dist import losses
from dfka_dist.config import LossWeights, TeacherSpec
from dfka_dist.models.generator import Stack
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.sources import build, load_state, read_weights
from dfka_dist.teachers.interface import Teachers
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.served import ServedTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.altering import moved
from dfka_dist.training.draws import Drawn
from dfka_dist.training.engines import Engine
from dfka_dist.training.memory import Labelled
from distributed.conftest import MakePool
from distributed.game import BATCH, DEPTH, EVERY_TERM, JITTER, RATE, Game, Networks, draw, networks

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
        self.block = copy.deepcopy(networks.block)
        self.teachers = {spec.name: UncutTeacher(spec) for spec in specs}
        self.optimizers = [
            torch.optim.SGD(network.parameters(), lr=RATE)
            for network in (self.generator, self.target.trunk, self.block)
        ]

    def generator_step(self, drawn: Drawn) -> Labelled:
        self.generator.train()
        self.target.eval()
        made: Stack = self.generator(drawn.noise, drawn.asked_for)
        assert drawn.moves is not None
        stack = made._replace(images=moved(made.images, drawn.moves, JITTER))
        student = self.target(stack.images)
        logits, terms, wanted, every = {}, [], [], []
        for name, teacher in self.teachers.items():
            logits[name], embedding = teacher(stack.images)
            task, kept = teacher.task, self.target.kept[name]
            heard = self._heard(name)
            said = logits[name][:, heard]
            terms.append(
                {
                    "one_hot": losses.one_hot(logits[name], drawn.targets[name], task),
                    "activation": losses.activation(embedding),
                    "entropy": losses.entropy(losses.probabilities(said, task).mean(0), task),
                    "discrete": losses.discrete(said, task),
                    "batch_norm": teacher.statistics(),
                    "adversarial": losses.adversarial(student[name], said),
                    "group": self._group(name, stack, said),
                }
            )
            wanted.append(len(kept))
            every.append(logits[name].shape[1])
        by_label = {"one_hot": every} | dict.fromkeys(("entropy", "discrete", "group"), wanted)
        total = {}
        for term in terms[0]:
            parts, counts = [own[term] for own in terms], by_label.get(term)
            total[term] = (
                losses.concatenated(parts, counts) if counts else torch.stack(parts).mean()
            )
        total |= {
            "diversity": losses.diversity(stack.images, drawn.noise),
            "total_variation": losses.total_variation(stack.images),
            "l2": losses.l2(stack.images),
        }
        assert {*total, "distill", "logits", "link"} == set(LossWeights.model_fields)
        self._step(0, total)
        said = {n: own.detach() for n, own in logits.items()}
        return Labelled(stack.images.detach(), said, torch.full((len(drawn.noise),), -1))

    def dual_step(self, labelled: Labelled) -> None:
        self.target.train()
        self._step(1, self._lesson(self.target(labelled.images), labelled))

    def block_step(self, labelled: Labelled, link: Tensor) -> None:
        """Eq. 16, in the two halves in which it stands in the paper."""
        first, block = self.block.blocks.eval()[0], self.block.blocks[1].train()
        own = block(first(self.block.preprocessing(labelled.images)))
        traces = {name: value.clone() for name, value in block.state_dict().items()}
        linked = block(self.block.adapter(link))
        streams = [self._lesson(self._behind(each), labelled) for each in (own, linked)]
        both = {n: streams[0][n] + EVERY_TERM.link * streams[1][n] for n in streams[0]}
        self._step(2, both)
        for name, value in statistics(block):
            value.copy_(traces[name])

    def _behind(self, feature: Tensor) -> dict[str, Tensor]:
        """Eq. 12."""
        said = {n: t(self.block.filters[n](feature), DEPTH)[0] for n, t in self.teachers.items()}
        return {name: own[:, self._heard(name)] for name, own in said.items()}

    def _lesson(self, said: dict[str, Tensor], labelled: Labelled) -> dict[str, Tensor]:
        """Eq. 13 and 14, and the same sum of distances."""
        truth = {n: own[:, self._heard(n)] for n, own in labelled.logits.items()}
        exact = [losses.distill(said[n], truth[n], t.task) for n, t in self.teachers.items()]
        near = [(said[n] - truth[n]).abs().mean() for n in self.teachers]
        return {"distill": torch.stack(exact).sum(), "logits": torch.stack(near).sum()}

    def _heard(self, name: str) -> list[int]:
        """Of a single-label teacher all labels, of another those that are wanted."""
        single = self.teachers[name].task == "single_label"
        return list(range(3)) if single else self.target.kept[name]

    def _group(self, name: str, stack: Stack, image_logits: Tensor) -> Tensor:
        """The mean over groups of eq. 11's term, for one teacher."""
        values = []
        for index, feature in enumerate(stack.features):
            own = self.generator.filters[index][name](feature.feature)
            logits, _ = self.teachers[name](own, depth=len(stack.features) - index)
            said = logits[:, self._heard(name)]
            values.append(losses.group(said, image_logits, self.teachers[name].task))
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


@pytest.fixture(scope="module")
def chosen(specs: dict[str, TeacherSpec]) -> list[TeacherSpec]:
    return [specs["first"], specs["second"]]


@pytest.fixture(scope="module")
def here(
    chosen: list[TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> LocalTeachers:
    return LocalTeachers({spec.name: load_teacher(spec) for spec in chosen})


@pytest.fixture(scope="module")
def there(chosen: list[TeacherSpec], make_pool: MakePool) -> Iterator[ServedTeachers]:
    with make_pool(chosen) as pool:
        yield pool.teachers


@pytest.fixture(
    scope="module",
    params=[(1, "here"), (2, "here"), (3, "here"), (1, "there")],
    ids=["zero1", "zero2", "zero3", "served"],
)
def played(
    request: pytest.FixtureRequest, process_group: None, chosen: list[TeacherSpec]
) -> dict[str, Played]:
    """Three alternating steps of all networks, the teachers in this process or served."""
    zero_stage, where = request.param
    teachers: Teachers = request.getfixturevalue(where)
    made = networks(chosen, teachers)
    plain = PlainTorch(made, chosen)
    players = {"generator": plain.generator, "trunk": plain.target.trunk, "block": plain.block}
    before = [network.state_dict() for network in players.values()]
    before = [{name: value.clone() for name, value in state.items()} for state in before]
    game = Game(made, teachers, zero_stage=zero_stage)
    for step in range(STEPS):
        drawn, random = draw(teachers, step), torch.Generator().manual_seed(step)
        link = torch.randn(BATCH, *made.generator.shapes[DEPTH - 1], generator=random)
        labelled = game.generator_step(drawn).labelled
        game.dual_step(labelled)
        game.block_step(labelled, link)
        labelled = plain.generator_step(drawn)
        plain.dual_step(labelled)
        plain.block_step(labelled, link)
    engines = [each.engine.state() for each in (game.synthesis, game.dual, game.block)]
    game.destroy()
    found = {}
    for (name, network), old, new in zip(players.items(), before, engines, strict=True):
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
    "what",
    [
        f"{who} {what}"
        for who in ("generator", "trunk", "block")
        for what in ("parameters", "buffers")
    ],
)
def test_alternating_steps_of_all_engines_are_those_of_plain_torch(
    played: dict[str, Played], what: str
) -> None:
    assert played[what].error <= TOLERANCE


# what it takes


@contextmanager
def no_more_memory_than(more: int) -> Iterator[None]:
    """This process may take so many bytes of addresses beside those that it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_small_network_takes_little_memory_to_average_its_gradients(
    process_group: None, zero_stage: int
) -> None:
    engine = Engine(
        nn.Linear(3, 1), micro_batch=2, zero_stage=zero_stage, precision="fp32", rate=0.1
    )
    with no_more_memory_than(500 * 2**20):
        output = engine(torch.ones(2, 3))
        engine.step([output], [torch.ones_like(output)], 0.1)
    engine.destroy()


# what a user adds


def test_a_users_own_keys_reach_deepspeed_beside_ours(process_group: None) -> None:
    more = {"gradient_clipping": 0.5, "zero_optimization": {"reduce_bucket_size": 1234}}
    engine = Engine(
        nn.Linear(3, 1), micro_batch=2, zero_stage=2, precision="fp32", rate=0.1, more=more
    )
    told = engine._engine.config
    engine.destroy()
    assert told["gradient_clipping"] == 0.5
    assert told["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1234}
    assert told["optimizer"]["type"] == "Adam"


def test_a_users_gradient_clipping_clips(process_group: None) -> None:
    """Of plain SGD at rate 1 the step is the gradient, no longer than that."""
    network = nn.Linear(3, 1)
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    engine = Engine(
        network,
        micro_batch=2,
        zero_stage=1,
        precision="fp32",
        rate=1.0,
        optimizer="sgd",
        more={"gradient_clipping": 0.01},
    )
    output = engine(torch.ones(2, 3))
    engine.step([output], [torch.ones_like(output)], 1.0)
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    engine.destroy()
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
