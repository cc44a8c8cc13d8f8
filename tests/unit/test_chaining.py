"""Networks that cannot be exported, entered on their own modules: the whole, or refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from dfka_dist.config import InputSpec, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models.backbones import ConvNet
from dfka_dist.models.chaining import ModuleStage
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.sources import build, read_weights
from dfka_dist.models.splitting import BlockChain, cut
from dfka_dist.models.target import Architecture, BranchPoint, TargetNet, version
from dfka_dist.teachers.interface import Wanted
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.branching import build_target

BLOCKS = ["block1", "block2", "block3"]
DEPTHS = [0, 1, 2, 3]


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


class Viewed(ConvNet):
    """An export has the example's batch size in its flattening."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__(labels=labels, widths=[4, 6, 8])
        self.spare = nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block3(self.between(self.block1(images), images))
        features = self.pool(features)
        logits: Tensor = self.classifier(features.view(features.size(0), -1))
        return logits

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        said: Tensor = self.block2(features)
        return said


class Counting(Viewed):
    """The batch size is read off the images and needed in the head."""

    def forward(self, images: Tensor) -> Tensor:
        count, features = len(images), images
        for name in self.block_names:
            features = self.get_submodule(name)(features)
        logits: Tensor = self.classifier(self.pool(features).view(count, -1))
        return logits


class Deciding(Viewed):
    """Which way it goes depends on what it sees; no export can hold that."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        said = super().between(-features if features.sum() > 0 else features, images)
        return said * 3 if said.mean() > 0.1 else said


class OutsideTorch(torch.autograd.Function):
    """Twice the values, counted by NumPy."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return torch.from_numpy(2 * values.detach().float().numpy()).to(values)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


class Foreign(Viewed):
    """It leaves torch between two blocks."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        said: Tensor = OutsideTorch.apply(super().between(features, images))
        return said


class Scaled(Viewed):
    """The network itself has parameters, a buffer and a shared part between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1.5))
        self.register_buffer("shift", torch.full((6, 1, 1), 0.5))
        self.act = nn.ReLU(inplace=True)

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        said = super().between(self.act(features * self.scale - 0.5), images)
        return self.act(said - self.shift)


class Nested(nn.Module):
    """Its blocks are in a list in a part that runs them and what else there is."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, kernel_size=1)
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, kernel_size=3) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.stem(images)
            for layer, norm in zip(self.layers, self.norms, strict=True):
                features = norm(layer(features)).relu_()
            return {"last": features}

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)["last"].mean((2, 3))
        logits: Tensor = self.head(features.view(features.size(0), -1))
        return logits


NESTED = ["body.norms.0", "body.layers.2", "body.norms.3"]
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "view": (Viewed, BLOCKS),
    "count": (Counting, BLOCKS),
    "decision": (Deciding, BLOCKS),
    "foreign": (Foreign, BLOCKS),
    "own tensors": (Scaled, BLOCKS),
    "nested": (Nested, NESTED),
}


def made(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In eval mode, with BatchNorm layers that have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = factory()
        network(pictures(32))
    return network.eval()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(kind: str) -> nn.Module:
    return made(KINDS[kind][0]).requires_grad_(False)


@pytest.fixture(scope="module")
def chain(kind: str, network: nn.Module) -> BlockChain:
    return entered(network, KINDS[kind][1])


def entered(network: nn.Module, blocks: list[str]) -> BlockChain:
    """A chain that was not exported."""
    chain = cut(network, blocks, pictures(2), "teachers.0")
    assert all(isinstance(stage, ModuleStage) for stage in chain.stages)
    return chain


def seen_inside(network: nn.Module, blocks: list[str], images: Tensor) -> list[Tensor]:
    """The images, what hooks see behind each block of the whole network, and its logits."""
    seen = [images]

    def look(_part: nn.Module, _given: object, said: Tensor) -> Tensor:
        seen.append(said)
        return said.clone()  # what comes next may work in place

    handles = [network.get_submodule(name).register_forward_hook(look) for name in blocks]
    logits: Tensor = network(images.clone())
    for handle in handles:
        handle.remove()
    return [*seen, logits]


# what such a network is


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("depth", DEPTHS)
def test_at_every_depth_and_batch_size_it_is_the_whole_network_bit_for_bit(
    kind: str, network: nn.Module, chain: BlockChain, depth: int, count: int
) -> None:
    seen = seen_inside(network, KINDS[kind][1], pictures(count, seed=count))
    pairs = zip(chain.walk(seen[depth], depth), seen[depth + 1 :], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("depth", DEPTHS)
def test_gradients_at_every_depth_are_those_of_the_whole_network_bit_for_bit(
    kind: str, network: nn.Module, chain: BlockChain, depth: int
) -> None:
    seen = seen_inside(network, KINDS[kind][1], pictures(3).requires_grad_())
    (theirs,) = torch.autograd.grad(seen[-1].square().sum(), seen[depth])
    value = seen[depth].detach().clone().requires_grad_()
    chain.tail(depth)(value).square().sum().backward()
    assert value.grad is not None and torch.equal(value.grad, theirs)


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_given_is_not_changed_in_place(chain: BlockChain, depth: int) -> None:
    value = [pictures(2), *chain.walk(pictures(2))][depth] - 0.3
    before = value.clone()
    chain(value, start=depth)
    assert torch.equal(value, before)


def test_what_the_idle_parts_hold_does_not_matter(chain: BlockChain) -> None:
    inside = [pictures(3), *chain.walk(pictures(3))]
    for stage, value in zip(chain.stages, inside, strict=False):
        said = [stage(value, filling) for filling in (0.0, 1.0, -7.0)]
        assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])


def test_a_copy_says_the_same(chain: BlockChain) -> None:
    assert torch.equal(copy.deepcopy(chain)(pictures(3)), chain(pictures(3)))


@settings(max_examples=10, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, unique=True),
    count=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_any_of_the_blocks_in_any_order_make_a_chain(
    blocks: list[str], count: int, seed: int
) -> None:
    network = made(Viewed, seed)
    parts, images = entered(network, blocks), pictures(count, seed)
    pairs = zip(parts.walk(images), seen_inside(network, blocks, images)[1:], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_in_float64_it_is_the_whole_network_too(kind: str, network: nn.Module) -> None:
    whole = copy.deepcopy(network).double()
    parts = cut(whole, KINDS[kind][1], pictures(2).double(), "teachers.0")
    assert torch.equal(parts(pictures(3).double()), whole(pictures(3).double()))


@pytest.mark.parametrize("depth", DEPTHS)
def test_in_sixteen_bits_it_is_the_whole_network_too(
    kind: str, network: nn.Module, chain: BlockChain, depth: int
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        *seen, logits = seen_inside(network, KINDS[kind][1], pictures(3))
        assert torch.equal(chain(seen[depth], start=depth), logits)


def test_a_network_that_can_be_exported_is_exported() -> None:
    parts = cut(made(ConvNet), ["block1"], pictures(2), "teachers.0")
    assert not any(isinstance(stage, ModuleStage) for stage in parts.stages)


def test_cutting_leaves_the_network_as_it_was() -> None:
    network = made(Viewed)
    before = {path: set(vars(part)) for path, part in network.named_modules()}
    state = copy.deepcopy(network.state_dict())
    entered(network, BLOCKS)
    assert before == {path: set(vars(part)) for path, part in network.named_modules()}
    assert all(torch.equal(state[name], now) for name, now in network.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_the_log_says_why_a_network_was_not_exported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dfka_dist"):
        entered(made(Viewed), BLOCKS)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("dfka_dist")]
    assert line.startswith("teachers.0 is entered on its original modules; exported: at batch")


class Wandering(Viewed):
    """Large values go past the second block, and larger ones straight to an end."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.block1(images)
        if features.amax() > 1e6:
            return features[:, :3, 0, 0]
        if features.amax() < 1e3:
            features = self.block2(features)
        logits: Tensor = self.classifier(self.pool(self.block3(features)).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("value", "said"),
    [(1e4, "'block3' runs for these values"), (1e7, "block 'block2' does not run for these")],
)
def test_values_that_lead_past_a_block_are_an_error(value: float, said: str) -> None:
    parts = entered(made(Wandering), BLOCKS)
    with pytest.raises(RuntimeError, match=said):
        parts(torch.full((1, 4, 8, 8), value), start=1)


# parts and state


def test_parts_are_found_in_the_stage_in_which_they_run() -> None:
    parts = entered(made(Viewed), BLOCKS)
    places = {path: parts.place(path) for path in ("block1.1", "block2", "block3.0", "classifier")}
    assert places == {"block1.1": 0, "block2": 1, "block3.0": 2, "classifier": 3}


def test_parts_are_found_by_the_path_they_had() -> None:
    network = made(Viewed)
    found = entered(network, BLOCKS).find("block2.1")
    assert isinstance(found, nn.BatchNorm2d) and found.running_mean is not None
    assert torch.equal(found.running_mean, network.state_dict()["block2.1.running_mean"])


@pytest.mark.parametrize("path", ["spare", "block9", "block1.7"])
def test_what_never_runs_is_in_no_stage(path: str) -> None:
    parts = entered(made(Viewed), BLOCKS)
    assert not parts.holds(path)
    with pytest.raises(KeyError):
        parts.find(path)


def test_no_part_is_found_in_a_stage_in_which_it_does_not_run(
    network: nn.Module, chain: BlockChain
) -> None:
    leaves = [path for path, part in network.named_modules() if not list(part.children())]
    own = copy.deepcopy(chain)
    inside = [pictures(1), *chain.walk(pictures(1))]
    for stage, value in zip(own.stages, inside, strict=False):
        assert isinstance(stage, ModuleStage)
        found = {path: part for path in leaves if (part := stage.part(path)) is not None}
        ran: set[nn.Module] = set()
        for part in found.values():
            part.register_forward_hook(lambda part, _given, _said, ran=ran: ran.add(part))
        stage(value)
        assert ran == set(found.values())


def test_every_tensor_that_is_used_is_in_one_stage(network: nn.Module, chain: BlockChain) -> None:
    held = [name.removeprefix("network.") for stage in chain.stages for name in stage.state_dict()]
    used = [name for name in network.state_dict() if not name.startswith("spare.")]
    assert sorted(held) == sorted(used)


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_of_a_tail_are_those_behind_its_depth(depth: int) -> None:
    network = made(Scaled)
    count = sum(
        parameter.numel() for parameter in entered(network, BLOCKS).tail(depth).parameters()
    )
    behind = ["block1", "scale block2", "block3", "classifier"][depth:]
    wanted = tuple(f"{name}" for names in behind for name in names.split())
    assert count == sum(p.numel() for n, p in network.named_parameters() if n.startswith(wanted))


@pytest.mark.parametrize("depth", DEPTHS)
def test_state_of_a_tail_fits_a_tail_of_other_weights(
    kind: str, chain: BlockChain, depth: int
) -> None:
    factory, blocks = KINDS[kind]
    fresh = entered(made(factory, seed=1), blocks).tail(depth)
    value = [pictures(3), *chain.walk(pictures(3))][depth]
    assert not torch.equal(fresh(value), chain(value, start=depth))
    fresh.load_state_dict(chain.tail(depth).state_dict())
    assert torch.equal(fresh(value), chain(value, start=depth))


# what is refused


def refusal(network: nn.Module, blocks: list[str]) -> InputError:
    with pytest.raises(InputError) as caught:
        cut(network.eval(), blocks, pictures(2), "teachers.0")
    assert caught.value.key == "teachers.0.blocks"
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


class Skipping(Viewed):
    """What the first block gives flows past the second as well; besides, it cannot be exported."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        said = super().between(features, images)
        return said + features.mean() if said.sum() < 1e9 else said


def test_a_skip_around_a_block_is_refused_by_that_block() -> None:
    what = refusal(made(Skipping), BLOCKS).what
    assert "cannot be cut there: behind block 'block2' there are several tensors; " in what
    assert "data-dependent" in what


def test_a_skip_within_two_blocks_is_no_harm() -> None:
    network = made(Skipping)
    parts = entered(network, ["block1", "block3"])
    assert torch.equal(parts(pictures(3)), network(pictures(3)))


def test_a_skip_of_the_images_is_refused_by_the_block_that_it_passes() -> None:
    class Watching(Viewed):
        def between(self, features: Tensor, images: Tensor) -> Tensor:
            said = super().between(features + images.amax(), images)
            return said * 2 if said.sum() < 1e9 else said

    assert "behind block 'block1' there are several" in refusal(made(Watching), BLOCKS).what


def test_a_skip_by_way_of_an_attribute_is_refused() -> None:
    class Remembering(Viewed):
        def between(self, features: Tensor, images: Tensor) -> Tensor:
            self.kept = features
            said = super().between(features, images)
            return said + self.kept.mean() if said.sum() < 1e9 else said

    assert "behind block 'block2' there are several" in refusal(made(Remembering), BLOCKS).what


def test_a_block_that_runs_twice_is_refused() -> None:
    class Twice(Viewed):
        def between(self, features: Tensor, images: Tensor) -> Tensor:
            return super().between(features, images) + super().between(-features, images)

    assert "block 'block2' runs 2 times" in refusal(made(Twice), BLOCKS).what


def test_a_block_that_never_runs_is_refused() -> None:
    assert "block 'spare' runs 0 times" in refusal(made(Viewed), ["block1", "spare"]).what


def test_parts_that_run_only_in_large_batches_are_refused() -> None:
    class Moody(Viewed):
        def between(self, features: Tensor, images: Tensor) -> Tensor:
            said = super().between(features, images)
            return self.pool(said).expand_as(said) if len(images) > 1 else said

    assert "which parts run depends on the batch" in refusal(made(Moody), BLOCKS).what


def test_a_network_that_cannot_be_copied_is_refused_by_both_reasons() -> None:
    class Locked(Deciding):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("there can be only one")

    what = refusal(made(Locked), BLOCKS).what
    assert "there can be only one" in what and "data-dependent" in what


# as a teacher, and in a target


@pytest.fixture(scope="module", params=[Viewed, Deciding])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherSpec:
    path = tmp_path_factory.mktemp("teacher") / "own.safetensors"
    save_file(made(request.param).state_dict(), path)
    return TeacherSpec(
        name="own",
        source=f"{__name__}:{request.param.__name__}",
        weights=str(path),
        task="multi_label",
        labels=["a", "b", "c"],
        blocks=BLOCKS,
        input=InputSpec(channels=1, size=16, mean=[0.4], std=[0.3]),
    )


@pytest.fixture(scope="module")
def teacher(spec: TeacherSpec, load_teacher: Callable[[TeacherSpec], Teacher]) -> Teacher:
    return load_teacher(spec)


@pytest.mark.parametrize("depth", DEPTHS)
def test_statistics_are_those_that_hooks_see_in_the_whole_network(
    spec: TeacherSpec, teacher: Teacher, depth: int
) -> None:
    whole = build(spec, "teachers.0").eval()
    whole.load_state_dict(read_weights(spec, "teachers.0").state)
    norms = {path: part for path, part in whole.named_modules() if isinstance(part, nn.BatchNorm2d)}
    firsts, seconds = [], []

    def hear(part: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
        away = given[0] - part.running_mean[:, None, None]
        firsts.append(away.sum((0, 2, 3)))
        seconds.append(away.square().sum((0, 2, 3)))

    for part in norms.values():
        part.register_forward_pre_hook(hear)
    images = pictures(5).abs()
    seen = seen_inside(whole, BLOCKS, Preprocessing(spec.input)(images))
    value = images if depth == 0 else seen[depth]
    sums = teacher.forward(value, depth=depth, wanted=Wanted(sums=True)).sums
    assert sums is not None
    assert [layer.path for layer in teacher.description.layers] == list(norms)
    for depths, ours in ((firsts, sums.first), (seconds, sums.second)):
        theirs = [one if at >= depth else one * 0 for at, one in enumerate(depths)]
        assert torch.allclose(ours, torch.cat(theirs), rtol=1e-5, atol=1e-5)


def test_the_embedding_is_what_the_last_linear_layer_eats(teacher: Teacher) -> None:
    assert teacher.description.embedding == 8


@pytest.mark.parametrize("depth", [1, 3])
def test_a_target_with_such_a_branch_is_saved_and_loaded(
    spec: TeacherSpec, teacher: Teacher, tmp_path: Path, depth: int
) -> None:
    branch = BranchPoint(
        teacher=spec.model_copy(update={"weights": None}),
        depth=depth,
        entry=depth,
        shape=teacher.description.shapes[depth],
        labels=spec.labels,
    )
    design = Architecture(
        dfka_dist=version(),
        labels=spec.labels,
        input=spec.input,
        backbone="convnet",
        arguments={"widths": [4, 6, 8]},
        branches=[branch],
    )
    target = build_target(design, LocalTeachers({"own": teacher})).eval()
    target.save_pretrained(tmp_path)
    again = TargetNet.from_pretrained(tmp_path, allow_code=[__name__])
    assert torch.equal(again.predict(pictures(3)), target.predict(pictures(3)))
    feature = target.trunk(pictures(3))["own"]
    assert torch.equal(again.tails["own"](feature), teacher.chain(feature, start=depth))
