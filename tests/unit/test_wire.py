"""Tensors that travel as arrays come back as they were, and as somebody's own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.teachers import wire
from dfka_dist.teachers.interface import BatchNormSums, InputGradient, TeacherOutput

SHAPES = st.lists(st.integers(0, 4), max_size=4)
LAYOUTS = ["contiguous", "transposed", "strided", "expanded", "channels_last"]


def drawn(shape: list[int], kind: torch.dtype, layout: str, seed: int) -> Tensor:
    """A tensor of the shape, laid out in memory in one way or another."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "transposed" and shape:
        backwards = range(len(shape) - 1, -1, -1)
        return torch.randn(shape[::-1], generator=generator).to(kind).permute(*backwards)
    if layout == "strided" and shape:
        double = [2 * shape[0], *shape[1:]]
        return torch.randn(double, generator=generator).to(kind)[::2]
    if layout == "expanded" and shape:
        return torch.randn([1, *shape[1:]], generator=generator).to(kind).expand(shape)
    made = torch.randn(shape, generator=generator).to(kind)
    if layout == "channels_last" and len(shape) == 4:
        return made.contiguous(memory_format=torch.channels_last)
    return made


tensors = st.builds(
    drawn,
    SHAPES,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from(LAYOUTS),
    st.integers(0, 100),
)


@settings(max_examples=60, deadline=None)
@given(tensor=tensors)
def test_what_travels_comes_back_bit_for_bit(tensor: Tensor) -> None:
    back = wire.decode(wire.encode(tensor))
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    assert back.dtype == wide.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, wide)


@settings(max_examples=60, deadline=None)
@given(tensor=tensors)
def test_what_travels_in_sixteen_bits_is_rounded_once(tensor: Tensor) -> None:
    back = wire.decode(wire.encode(tensor, "bf16"))
    rounded = tensor if tensor.dtype == torch.float64 else tensor.to(torch.bfloat16).float()
    assert torch.equal(back, rounded)


@settings(max_examples=50, deadline=None)
@given(tensor=tensors, precision=st.sampled_from(["fp32", "bf16"]))
def test_arrays_are_contiguous(tensor: Tensor, precision: Precision) -> None:
    assert wire.encode(tensor, precision).flags["C_CONTIGUOUS"]


@settings(max_examples=50, deadline=None)
@given(tensor=tensors, precision=st.sampled_from(["fp32", "bf16"]))
def test_what_comes_back_owns_its_memory(tensor: Tensor, precision: Precision) -> None:
    array = wire.encode(tensor, precision)
    before = array.copy()
    array.setflags(write=False)  # as Ray hands it over
    wire.decode(array).fill_(7.0)
    assert np.array_equal(array, before, equal_nan=True)


def test_what_is_only_read_is_not_copied() -> None:
    array = wire.encode(torch.rand(2, 3))
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = wire.decode(array, read=True)
    assert back.data_ptr() == array.ctypes.data
    assert torch.equal(back, torch.from_numpy(array.copy()))


def test_what_is_not_copied_is_kept_for_as_long_as_it_is_read() -> None:
    back = wire.decode(wire.encode(torch.full((1000, 1000), 3.0)), read=True)
    assert torch.equal(back, torch.full_like(back, 3.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_special_numbers_survive(precision: Precision) -> None:
    tensor = torch.tensor([torch.inf, -torch.inf, -0.0, 0.0])
    back = wire.decode(wire.encode(tensor, precision))
    assert torch.equal(back, tensor)
    assert torch.equal(back.signbit(), tensor.signbit())


def test_not_a_number_stays_none() -> None:
    assert wire.decode(wire.encode(torch.tensor([torch.nan]), "bf16")).isnan().all()


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_numbers_stay_as_they_are(kind: torch.dtype, precision: Precision) -> None:
    tensor = torch.tensor([0, 1, 1]).to(kind)
    back = wire.decode(wire.encode(tensor, precision))
    assert back.dtype == kind
    assert torch.equal(back, tensor)


def test_sixteen_bits_take_half_the_bytes() -> None:
    tensor = torch.randn(100)
    assert wire.encode(tensor, "bf16").nbytes * 2 == wire.encode(tensor).nbytes


def test_a_tensor_with_a_graph_travels_without_it() -> None:
    tensor = torch.randn(3, requires_grad=True)
    assert not wire.decode(wire.encode(tensor * 2)).requires_grad


def sums(kind: torch.dtype = torch.float32) -> BatchNormSums:
    return BatchNormSums(torch.tensor([4.0]), torch.randn(3).to(kind), torch.randn(3).to(kind))


def parts(output: TeacherOutput) -> list[Tensor | None]:
    inner = output.sums
    more = [None] * 3 if inner is None else [inner.count, inner.first, inner.second]
    return [output.logits, output.embedding, *more]


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


@pytest.mark.parametrize("logits", [None, torch.randn(2, 3)], ids=["no logits", "logits"])
@pytest.mark.parametrize("embedding", [None, torch.randn(2, 5)], ids=["no embedding", "embedding"])
@pytest.mark.parametrize("inner", [None, sums()], ids=["no sums", "sums"])
def test_answers_come_back_with_exactly_the_parts_they_had(
    logits: Tensor | None, embedding: Tensor | None, inner: BatchNormSums | None
) -> None:
    output = TeacherOutput(logits, embedding, inner)
    back = wire.decode_output(wire.encode_output(output))
    assert all(same(one, other) for one, other in zip(parts(output), parts(back), strict=True))


def test_sums_are_never_rounded() -> None:
    output = TeacherOutput(torch.randn(2, 3), None, sums())
    back = wire.decode_output(wire.encode_output(output, "bf16")).sums
    assert back is not None and output.sums is not None
    assert torch.equal(back.second, output.sums.second)


def test_double_precision_of_an_answer_is_kept() -> None:
    output = TeacherOutput(torch.randn(2, 3).double(), None, sums(torch.float64))
    back = wire.decode_output(wire.encode_output(output, "bf16"))
    assert [part.dtype for part in parts(back) if part is not None] == [
        torch.float64,
        torch.float32,
        torch.float64,
        torch.float64,
    ]


@pytest.mark.parametrize("gate", [None, torch.rand(2, 3)], ids=["no gate", "gate"])
def test_gradients_come_back_with_exactly_the_parts_they_had(gate: Tensor | None) -> None:
    gradient = InputGradient(torch.randn(2, 3, 4, 4), gate)
    back = wire.decode_gradient(wire.encode_gradient(gradient))
    assert torch.equal(back.inputs, gradient.inputs)
    assert same(back.gate, gate)
