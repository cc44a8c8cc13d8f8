"""A frozen teacher as a pure function, its statistics, and gradients that come back through it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dfka_dist import losses
from dfka_dist.config import TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models.preprocessing import Preprocessing
from dfka_dist.models.sources import build, read_weights
from dfka_dist.teachers.interface import BatchNormSums, Question, TeacherOutput, Wanted
from dfka_dist.teachers.local import LocalTeachers, RememberingTeacher
from dfka_dist.teachers.teacher import Teacher, load_teachers

MakeTeacher = Callable[..., TeacherSpec]
LoadTeacher = Callable[[TeacherSpec], Teacher]

EVERYTHING = Wanted(embedding=True, sums=True, gradient=True)
DEPTHS = [0, 1, 2, 3]


def pictures(count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 16, 16, generator=generator, dtype=dtype)


def gates(count: int, channels: int) -> Tensor:
    return 2 * torch.rand(count, channels, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def spec(make_teacher: MakeTeacher) -> TeacherSpec:
    return make_teacher()


@pytest.fixture(scope="module")
def teacher(spec: TeacherSpec, load_teacher: LoadTeacher) -> Teacher:
    return load_teacher(spec)


@pytest.fixture(scope="module")
def exact(spec: TeacherSpec, load_teacher: LoadTeacher) -> Teacher:
    """The same teacher in float64."""
    made = load_teacher(spec)
    made.chain.double()
    made.preprocessing.double()
    return made


@pytest.fixture(scope="module")
def network(spec: TeacherSpec) -> nn.Module:
    """The teacher as it was before anybody cut it: preprocessing in front of the network; laid out
    as a teacher is."""
    whole = build(spec, "teachers.0")
    whole.load_state_dict(read_weights(spec, "teachers.0").state)
    made = nn.Sequential(Preprocessing(spec.input), whole).eval().requires_grad_(False)
    return made.to(memory_format=torch.channels_last)


def heard(network: nn.Module, images: Tensor, path: str) -> Tensor:
    """What the uncut network feeds to the part at a path."""
    inputs: list[Tensor] = []
    part = network.get_submodule(path)
    handle = part.register_forward_pre_hook(lambda _part, given: inputs.append(given[0]))
    network(images)
    handle.remove()
    return inputs[0]


def inside(teacher: Teacher, images: Tensor) -> list[Tensor]:
    """What lies at depths 0..B; at depth 0 the images themselves."""
    return [images, *list(teacher.chain.walk(teacher.preprocessing(images)))[:-1]]


def logits_of(output: TeacherOutput) -> Tensor:
    assert output.logits is not None
    return output.logits


def sums_of(teacher: Teacher, inputs: Tensor, depth: int = 0) -> BatchNormSums:
    sums = teacher.forward(inputs, depth=depth, wanted=Wanted(sums=True)).sums
    assert sums is not None
    return sums


# forward


@pytest.mark.parametrize("depth", DEPTHS)
def test_entering_at_every_depth_gives_what_the_whole_network_says(
    teacher: Teacher, network: nn.Module, depth: int
) -> None:
    value = inside(teacher, pictures())[depth]
    said = logits_of(teacher.forward(value, depth=depth, wanted=Wanted()))
    assert torch.equal(said, network(pictures()))


@pytest.mark.parametrize("size", [8, 16, 28])
def test_images_of_any_size_are_welcome(teacher: Teacher, size: int) -> None:
    images = torch.rand(2, 1, size, size)
    assert logits_of(teacher.forward(images, wanted=Wanted())).shape == (2, 3)


def test_images_with_other_channels_are_welcome(teacher: Teacher) -> None:
    images = pictures().expand(-1, 3, -1, -1)
    said = logits_of(teacher.forward(images, wanted=Wanted()))
    assert torch.allclose(said, logits_of(teacher.forward(pictures(), wanted=Wanted())), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gates_are_multiplied_onto_the_features_by_channel(teacher: Teacher, depth: int) -> None:
    value = inside(teacher, pictures())[depth]
    gate = gates(*value.shape[:2])
    gated = teacher.forward(value, depth=depth, gate=gate, wanted=Wanted())
    by_hand = teacher.forward(value * gate[:, :, None, None], depth=depth, wanted=Wanted())
    assert torch.equal(logits_of(gated), logits_of(by_hand))


def test_embedding_is_what_the_last_linear_layer_eats(teacher: Teacher, network: nn.Module) -> None:
    said = teacher.forward(pictures(), wanted=Wanted(embedding=True)).embedding
    assert said is not None
    assert torch.equal(said, heard(network, pictures(), "1.classifier"))


def test_only_what_is_wanted_is_answered(teacher: Teacher) -> None:
    output = teacher.forward(pictures(), wanted=Wanted())
    assert (output.embedding, output.sums) == (None, None)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_forward_changes_no_parameter_and_no_buffer(
    spec: TeacherSpec, load_teacher: LoadTeacher, depth: int
) -> None:
    own = load_teacher(spec)
    before = copy.deepcopy(own.chain.state_dict())
    own.forward(inside(own, pictures())[depth], depth=depth, wanted=EVERYTHING)
    assert all(torch.equal(before[name], now) for name, now in own.chain.state_dict().items())


@pytest.mark.parametrize("depth", DEPTHS)
def test_inputs_are_not_changed_in_place(teacher: Teacher, depth: int) -> None:
    value = inside(teacher, pictures())[depth] - 0.5  # something that a ReLU would change
    before = value.clone()
    teacher.forward(value, depth=depth, wanted=EVERYTHING)
    assert torch.equal(value, before)


def test_no_parameter_of_a_teacher_asks_for_a_gradient(teacher: Teacher) -> None:
    assert not any(parameter.requires_grad for parameter in teacher.chain.parameters())


def test_a_forward_is_the_same_again(teacher: Teacher) -> None:
    first, second = (teacher.forward(pictures(), wanted=EVERYTHING) for _ in range(2))
    assert torch.equal(logits_of(first), logits_of(second))


def test_in_sixteen_bits_answers_are_close_and_in_thirty_two(teacher: Teacher) -> None:
    rough = teacher.forward(pictures(), wanted=EVERYTHING, precision="bf16")
    fine = teacher.forward(pictures(), wanted=EVERYTHING)
    assert logits_of(rough).dtype == torch.float32
    assert torch.allclose(logits_of(rough), logits_of(fine), atol=0.1)


def test_in_sixteen_bits_sums_are_in_thirty_two(teacher: Teacher) -> None:
    sums = teacher.forward(pictures(), wanted=EVERYTHING, precision="bf16").sums
    assert sums is not None
    assert sums.second.dtype == torch.float32


def test_in_double_precision_answers_are_in_double_precision(exact: Teacher) -> None:
    output = exact.forward(pictures(dtype=torch.float64), wanted=EVERYTHING)
    assert output.sums is not None and output.embedding is not None
    kinds = [logits_of(output), output.embedding, output.sums.first, output.sums.second]
    assert {value.dtype for value in kinds} == {torch.float64}


# statistics


def by_layer(teacher: Teacher, values: Tensor) -> list[Tensor]:
    return list(torch.split(values, [layer.channels for layer in teacher.description.layers]))


def test_layers_are_named_by_their_paths_and_their_blocks(teacher: Teacher) -> None:
    found = [(layer.path, layer.depth, layer.channels) for layer in teacher.description.layers]
    assert found == [("block1.1", 1, 4), ("block2.1", 2, 6), ("block3.1", 3, 8)]


def test_sums_give_the_means_that_the_uncut_networks_layers_see(
    teacher: Teacher, network: nn.Module
) -> None:
    sums = sums_of(teacher, pictures())
    for index, layer in enumerate(teacher.description.layers):
        part = network.get_submodule(f"1.{layer.path}")
        assert isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
        seen = heard(network, pictures(), f"1.{layer.path}").mean((0, 2, 3))
        ours = by_layer(teacher, sums.first)[index] / sums.count[index] + part.running_mean
        assert torch.allclose(ours, seen, atol=1e-6)


def test_sums_give_the_variances_that_the_uncut_networks_layers_see(
    teacher: Teacher, network: nn.Module
) -> None:
    sums = sums_of(teacher, pictures())
    for index, layer in enumerate(teacher.description.layers):
        seen = heard(network, pictures(), f"1.{layer.path}").var((0, 2, 3), correction=0)
        count = sums.count[index]
        shift = by_layer(teacher, sums.first)[index] / count
        ours = by_layer(teacher, sums.second)[index] / count - shift.square()
        assert torch.allclose(ours, seen, atol=1e-6)


def test_sums_are_what_torch_itself_would_put_into_its_running_statistics(
    teacher: Teacher, spec: TeacherSpec
) -> None:
    """A BatchNorm of momentum 1 takes the statistics of one batch over."""
    whole = build(spec, "teachers.0").eval()
    whole.load_state_dict(read_weights(spec, "teachers.0").state)
    images = Preprocessing(spec.input)(pictures())
    sums = sums_of(teacher, pictures())
    for index, layer in enumerate(teacher.description.layers):
        part = whole.get_submodule(layer.path)
        assert isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
        fresh = nn.BatchNorm2d(layer.channels, momentum=1.0)
        fresh(heard(whole, images, layer.path))
        assert fresh.running_mean is not None
        ours = by_layer(teacher, sums.first)[index] / sums.count[index] + part.running_mean
        assert torch.allclose(ours, fresh.running_mean, atol=1e-6)


def test_counts_are_the_values_a_channel(teacher: Teacher) -> None:
    assert sums_of(teacher, pictures(5)).count.tolist() == [5 * 64, 5 * 16, 5 * 4]


@pytest.mark.parametrize("depth", DEPTHS)
def test_layers_in_front_of_the_depth_count_nothing(teacher: Teacher, depth: int) -> None:
    sums = sums_of(teacher, inside(teacher, pictures())[depth], depth)
    assert [count > 0 for count in sums.count.tolist()] == [
        layer.depth > depth for layer in teacher.description.layers
    ]


def test_running_variances_are_those_of_the_weights(teacher: Teacher, spec: TeacherSpec) -> None:
    state = read_weights(spec, "teachers.0").state
    theirs = [state[f"{layer.path}.running_var"] for layer in teacher.description.layers]
    assert torch.equal(teacher.description.running_var, torch.cat(theirs))


def statistics_loss(teacher: Teacher, sums: BatchNormSums) -> Tensor:
    description = teacher.description
    return losses.batch_norm(
        sums.count,
        sums.first,
        sums.second,
        description.running_var.to(sums.first),
        [layer.channels for layer in description.layers],
    )


def whole_and_split(teacher: Teacher, images: Tensor, sizes: list[int]) -> list[list[Tensor]]:
    """Value and image gradient of the statistics loss, on the whole batch and on its parts."""
    results = []
    for parts in ([len(images)], sizes):
        leaf = images.clone().requires_grad_()
        sums = [sums_of(teacher, part) for part in torch.split(leaf, parts)]
        together = sums[0]
        for more in sums[1:]:
            together = together + more
        value = statistics_loss(teacher, together)
        results.append([value, *torch.autograd.grad(value, leaf)])
    return results


def difference(whole: Tensor, split: Tensor) -> float:
    return float(((whole - split).norm() / whole.norm()).detach())


def test_statistics_loss_of_four_parts_is_that_of_the_batch_to_1e5_in_fp32(
    teacher: Teacher,
) -> None:
    whole, split = whole_and_split(teacher, pictures(16), [4, 4, 4, 4])
    assert difference(whole[0], split[0]) < 1e-5


def test_statistics_gradient_of_four_parts_is_that_of_the_batch_to_1e5_in_fp32(
    teacher: Teacher,
) -> None:
    whole, split = whole_and_split(teacher, pictures(16), [4, 4, 4, 4])
    assert difference(whole[1], split[1]) < 1e-5


def test_statistics_loss_of_four_parts_is_that_of_the_batch_to_1e12_in_fp64(
    exact: Teacher,
) -> None:
    images = pictures(16, dtype=torch.float64)
    whole, split = whole_and_split(exact, images, [4, 4, 4, 4])
    assert whole[0].dtype == torch.float64
    assert difference(whole[0], split[0]) < 1e-12


def test_statistics_gradient_of_four_parts_is_that_of_the_batch_to_1e12_in_fp64(
    exact: Teacher,
) -> None:
    images = pictures(16, dtype=torch.float64)
    whole, split = whole_and_split(exact, images, [4, 4, 4, 4])
    assert difference(whole[1], split[1]) < 1e-12


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_statistics_do_not_depend_on_how_a_batch_is_split(
    exact: Teacher, sizes: list[int], seed: int
) -> None:
    images = pictures(sum(sizes), seed, dtype=torch.float64)
    whole, split = whole_and_split(exact, images, sizes)
    assert difference(whole[0], split[0]) < 1e-12
    assert difference(whole[1], split[1]) < 1e-12


# pullback


def ask(
    kept: RememberingTeacher, key: str, inputs: Tensor, depth: int = 0, gate: Tensor | None = None
) -> TeacherOutput:
    return kept.forward(key, inputs, depth=depth, gate=gate, wanted=EVERYTHING, precision="fp32")


def pull(
    kept: RememberingTeacher,
    key: str,
    inputs: Tensor,
    cotangents: TeacherOutput,
    depth: int = 0,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    got = kept.pullback(
        key,
        lambda: (inputs, gate),
        cotangents,
        depth=depth,
        wanted=EVERYTHING,
        precision="fp32",
    )
    return got.inputs, got.gate


def some_cotangents(output: TeacherOutput) -> TeacherOutput:
    """Random ones for every part of an answer."""
    generator = torch.Generator().manual_seed(2)
    assert output.logits is not None and output.embedding is not None and output.sums is not None
    logits, embedding, first, second = (
        torch.randn(part.shape, generator=generator)
        for part in (output.logits, output.embedding, output.sums.first, output.sums.second)
    )
    return TeacherOutput(logits, embedding, BatchNormSums(output.sums.count, first, second))


def test_pullback_of_logits_is_the_gradient_of_the_uncut_network(
    teacher: Teacher, network: nn.Module
) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    images = pictures().requires_grad_()
    cotangent = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    (theirs,) = torch.autograd.grad(network(images), images, cotangent)
    ask(kept, "k", pictures())
    ours, _ = pull(kept, "k", pictures(), TeacherOutput(cotangent))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_pullback_of_the_embedding_is_the_gradient_of_the_uncut_network(
    teacher: Teacher, network: nn.Module
) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    images = pictures().requires_grad_()
    cotangent = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    seen = heard(network, images, "1.classifier")
    (theirs,) = torch.autograd.grad(seen, images, cotangent)
    ask(kept, "k", pictures())
    ours, _ = pull(kept, "k", pictures(), TeacherOutput(None, cotangent))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_pullback_of_sums_is_the_gradient_of_the_uncut_networks_statistics(
    teacher: Teacher, network: nn.Module
) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    images = pictures().requires_grad_()
    firsts, seconds = [], []
    for layer in teacher.description.layers:
        part = network.get_submodule(f"1.{layer.path}")
        assert isinstance(part, nn.BatchNorm2d) and part.running_mean is not None
        centred = heard(network, images, f"1.{layer.path}") - part.running_mean[:, None, None]
        firsts.append(centred.sum((0, 2, 3)))
        seconds.append(centred.square().sum((0, 2, 3)))
    output = ask(kept, "k", pictures())
    assert output.sums is not None
    c1, c2 = (torch.randn(18, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    (theirs,) = torch.autograd.grad([torch.cat(firsts), torch.cat(seconds)], images, [c1, c2])
    sums = BatchNormSums(output.sums.count, c1, c2)
    ours, _ = pull(kept, "k", pictures(), TeacherOutput(None, None, sums))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pullback_reaches_features_and_gates(teacher: Teacher, depth: int) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    value = inside(teacher, pictures())[depth]
    gate = gates(*value.shape[:2])
    cotangent = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    leaves = [value.clone().requires_grad_(), gate.clone().requires_grad_()]
    said = teacher.chain(leaves[0] * leaves[1][:, :, None, None], start=depth)
    theirs = torch.autograd.grad(said, leaves, cotangent)
    ask(kept, "k", value, depth, gate)
    ours = pull(kept, "k", value, TeacherOutput(cotangent), depth, gate)
    assert ours[1] is not None
    assert torch.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-7)
    assert torch.allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-7)


def test_without_gates_there_is_no_gradient_of_gates(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    cotangents = some_cotangents(ask(kept, "k", pictures()))
    assert pull(kept, "k", pictures(), cotangents)[1] is None


def test_answers_carry_no_graph(teacher: Teacher) -> None:
    output = ask(RememberingTeacher(teacher, 1 << 30), "k", pictures())
    assert output.sums is not None
    assert not (logits_of(output).requires_grad or output.sums.first.requires_grad)


# the cache of graphs


def test_a_kept_graph_is_used_without_fetching_the_inputs_again(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    cotangents = some_cotangents(ask(kept, "k", pictures()))
    pull(kept, "k", torch.full((4, 1, 16, 16), torch.nan), cotangents)
    assert kept.recomputed == 0


def test_an_evicted_graph_is_made_again_with_the_same_gradient(teacher: Teacher) -> None:
    roomy, tight = RememberingTeacher(teacher, 1 << 30), RememberingTeacher(teacher, 0)
    gradients = []
    for kept in (roomy, tight):
        cotangents = some_cotangents(ask(kept, "k", pictures()))
        gradients.append(pull(kept, "k", pictures(), cotangents)[0])
    assert (roomy.recomputed, tight.recomputed) == (0, 1)
    assert torch.equal(*gradients)


def test_a_teacher_that_never_was_asked_can_pull_back(teacher: Teacher) -> None:
    """So a pullback may go to another replica, or to a server that was started again."""
    asked, fresh = RememberingTeacher(teacher, 1 << 30), RememberingTeacher(teacher, 1 << 30)
    cotangents = some_cotangents(ask(asked, "k", pictures()))
    theirs, _ = pull(asked, "k", pictures(), cotangents)
    assert torch.equal(pull(fresh, "k", pictures(), cotangents)[0], theirs)


def test_the_oldest_graphs_are_evicted_first(teacher: Teacher) -> None:
    probe = RememberingTeacher(teacher, 1 << 30)
    ask(probe, "k", pictures())
    kept = RememberingTeacher(teacher, int(2.5 * probe.kept_bytes))
    for key in ("first", "second", "third"):
        ask(kept, key, pictures())
    assert [kept.knows(key) for key in ("first", "second", "third")] == [False, True, True]


def test_a_graph_that_the_cache_can_never_hold_leaves_the_others(
    teacher: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    """And one warning names the key."""
    probe = RememberingTeacher(teacher, 1 << 30)
    ask(probe, "k", pictures())
    kept = RememberingTeacher(teacher, int(2.5 * probe.kept_bytes))
    for key, count in {"small": 4, "large": 40, "larger": 50}.items():
        ask(kept, key, pictures(count))
    assert [kept.knows(key) for key in ("small", "large", "larger")] == [True, False, False]
    assert [record.message.count("serving.cache_megabytes") for record in caplog.records] == [1]


def test_a_graph_is_weighed_by_its_activations(teacher: Teacher) -> None:
    weights = []
    for count in (4, 8):
        kept = RememberingTeacher(teacher, 1 << 30)
        ask(kept, "k", pictures(count))
        weights.append(kept.kept_bytes)
    assert 1.5 < weights[1] / weights[0] <= 2.0


def test_nothing_is_kept_where_no_gradient_is_wanted(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    kept.forward("k", pictures(), depth=0, gate=None, wanted=Wanted(), precision="fp32")
    assert not kept.knows("k")


def test_a_drop_forgets_the_graph(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    ask(kept, "k", pictures())
    kept.drop("k")
    assert not kept.knows("k")


def test_dropping_what_was_never_kept_is_no_error(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    kept.drop("k")
    assert not kept.knows("k")


def test_a_pullback_gives_the_graph_away(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    pull(kept, "k", pictures(), some_cotangents(ask(kept, "k", pictures())))
    assert not kept.knows("k")


# local teachers


@pytest.fixture(scope="module")
def pair(make_teacher: MakeTeacher) -> dict[str, Teacher]:
    specs = [make_teacher("one", ["a", "b"]), make_teacher("two", ["c"], mean=[0.2])]
    return load_teachers(specs, {s.name: read_weights(s, "teachers") for s in specs})


def test_every_teacher_of_a_question_answers(pair: dict[str, Teacher]) -> None:
    question = Question(pictures(), ("one", "two"))
    answers = LocalTeachers(pair).forward(question).result()
    for name, teacher in pair.items():
        alone = teacher.forward(pictures(), wanted=Wanted())
        assert torch.equal(logits_of(answers[name]), logits_of(alone))


def test_only_teachers_of_the_question_answer(pair: dict[str, Teacher]) -> None:
    answers = LocalTeachers(pair).forward(Question(pictures(), ("two",))).result()
    assert list(answers) == ["two"]


def test_gradients_come_back_teacher_by_teacher(pair: dict[str, Teacher]) -> None:
    teachers = LocalTeachers(pair)
    question = Question(pictures(), ("one", "two"), Wanted(gradient=True))
    answers = teachers.forward(question).result()
    cotangents = {
        name: TeacherOutput(torch.ones_like(logits_of(answer))) for name, answer in answers.items()
    }
    got = teachers.pullback(question, cotangents).result()
    for name, teacher in pair.items():
        images = pictures().requires_grad_()
        total = logits_of(teacher.forward(images, wanted=Wanted())).sum()
        (theirs,) = torch.autograd.grad(total, images)
        assert torch.allclose(got[name].inputs, theirs, atol=1e-7)


def test_each_teacher_has_its_own_gate(pair: dict[str, Teacher]) -> None:
    teachers = LocalTeachers(pair)
    value = torch.rand(2, 4, 8, 8)
    own = {"one": gates(2, 4), "two": torch.ones(2, 4)}
    answers = teachers.forward(Question(value, ("one", "two"), depth=1, gates=own)).result()
    for name, teacher in pair.items():
        alone = teacher.forward(value, depth=1, gate=own[name], wanted=Wanted())
        assert torch.equal(logits_of(answers[name]), logits_of(alone))


def test_descriptions_are_in_the_order_of_the_configuration(pair: dict[str, Teacher]) -> None:
    assert list(LocalTeachers(pair).descriptions) == ["one", "two"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_state_of_a_tail_fits_the_tail(pair: dict[str, Teacher], depth: int) -> None:
    state = LocalTeachers(pair).tail("one", depth)
    own = pair["one"].chain.tail(depth).state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], value) for name, value in own.items())


# what it tells about itself, and what it refuses


def test_description_has_the_shapes_of_all_depths(teacher: Teacher) -> None:
    assert teacher.description.shapes == ((1, 16, 16), (4, 8, 8), (6, 4, 4), (8, 2, 2))


def test_description_counts_parameters(teacher: Teacher, network: nn.Module) -> None:
    expected = sum(parameter.numel() for parameter in network.parameters())
    assert teacher.description.parameters == expected


def test_description_has_the_width_of_the_embedding(teacher: Teacher) -> None:
    assert teacher.description.embedding == 8


def test_number_of_labels_must_be_the_number_of_logits(spec: TeacherSpec) -> None:
    arguments = {"widths": [4, 6, 8], "labels": 3}
    source = "dfka_dist.models.backbones:ConvNet"
    two = {"source": source, "arguments": arguments, "labels": ["a", "b"]}
    with pytest.raises(InputError, match=r"^teachers\.0\.labels: 2 names for 3 logits"):
        Teacher(spec.model_copy(update=two), "teachers.0", read_weights(spec, "teachers.0"))


def test_blocks_must_give_pictures(spec: TeacherSpec) -> None:
    cut_at_the_end = spec.model_copy(update={"blocks": ["block1", "classifier"]})
    with pytest.raises(InputError) as caught:
        Teacher(cut_at_the_end, "teachers.0", read_weights(spec, "teachers.0"))
    assert caught.value.key == "teachers.0.blocks"


def test_labels_that_are_too_few_are_refused(make_teacher: MakeTeacher) -> None:
    spec = make_teacher(labels=["a", "b", "c"])
    fewer = spec.model_copy(update={"labels": ["a", "b"]})
    with pytest.raises(InputError) as caught:
        Teacher(fewer, "teachers.0", read_weights(fewer, "teachers.0"))
    assert caught.value.key == "teachers.0.weights"
    assert "classifier.weight is [3, 8] for [2, 8]" in caught.value.what


def test_a_kept_graph_weighs_what_its_images_saved_and_nothing_of_the_teacher(
    make_teacher: Callable[..., TeacherSpec], load_teacher: Callable[[TeacherSpec], Teacher]
) -> None:
    """Twice the images, twice the bytes; the teacher's own parameters are there anyhow."""
    teacher, weighed = load_teacher(make_teacher("weighed", "abc")), []
    for count in (4, 8):
        kept = RememberingTeacher(teacher, 1 << 30)
        kept.forward(
            "k",
            torch.rand(count, 1, 16, 16),
            depth=0,
            gate=None,
            wanted=Wanted(gradient=True),
            precision="fp32",
        )
        weighed.append(kept.kept_bytes)
    assert weighed[1] == pytest.approx(2 * weighed[0], rel=0.01)


def kept_after(kept: RememberingTeacher, count: int, wanted: Wanted) -> int:
    kept.forward("k", pictures(count), depth=0, gate=None, wanted=wanted, precision="fp32")
    return kept.kept_bytes


def test_a_graph_of_a_known_kind_weighs_what_it_weighed_when_it_was_new(
    make_teacher: MakeTeacher, load_teacher: Callable[[TeacherSpec], Teacher]
) -> None:
    """Asked in turns about other kinds, each of which has its own weight."""
    kept = RememberingTeacher(load_teacher(make_teacher("weighed", "abc")), 1 << 30)
    kinds = [(4, Wanted(gradient=True)), (8, Wanted(gradient=True)), (4, EVERYTHING)]
    first, again = ([kept_after(kept, *kind) for kind in kinds] for _ in range(2))
    assert first == again and len(set(first)) == 3


def test_the_gradient_of_a_graph_of_a_known_kind_is_the_same(teacher: Teacher) -> None:
    kept = RememberingTeacher(teacher, 1 << 30)
    gradients = []
    for _ in range(2):
        cotangents = some_cotangents(ask(kept, "k", pictures()))
        gradients.append(pull(kept, "k", pictures(), cotangents)[0])
    assert torch.equal(*gradients)


def test_a_description_says_what_graphs_weigh_at_most_and_what_statistics_add(
    teacher: Teacher,
) -> None:
    """They keep a copy of every layer's input."""
    told, kept = teacher.description, RememberingTeacher(teacher, 1 << 30)
    plain, summed = (kept_after(kept, 8, Wanted(sums=s, gradient=True)) for s in (False, True))
    assert 0 < plain <= 8 * sum(told.graph_bytes)
    assert summed - plain == 8 * sum(told.sums_bytes) > 0
