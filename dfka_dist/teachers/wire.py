"""Tensors as NumPy arrays for the object store, and back.

bf16 travels as its 16-bit pattern, everything else as itself; float64 stays float64 whatever is
chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfka_dist.config import Precision
from dfka_dist.teachers.interface import BatchNormSums, InputGradient, TeacherOutput

Array = np.ndarray[Any, np.dtype[Any]]


def encode(tensor: Tensor, precision: Precision = "fp32") -> Array:
    """A contiguous array on the CPU; floating point in the wire's precision."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    tensor = tensor.contiguous().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def decode(
    array: Array,
    device: torch.device | None = None,
    *,
    narrow: bool = False,
    read: bool = False,
) -> Tensor:
    """A tensor of an array, which may be read-only and shared, as those from the object store are.

    Args:
        narrow: leave bf16 as it is; otherwise it becomes fp32.
        read: it is only read, never written to, and so may be the array's own memory.
    """
    tensor = torch.from_numpy(np.asarray(_Seen(array)))
    if tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)
        tensor = tensor if narrow else tensor.float()
    tensor = tensor if device is None else tensor.to(device)
    return tensor if read or tensor.data_ptr() != array.ctypes.data else tensor.clone()


class _Seen:
    """An array without word of its being read-only: torch warns of such arrays, and has no tensors
    that cannot be written to."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def encode_feature(tensor: Tensor) -> Array:
    """What flows between two shards: bf16 and fp32 as they are, whatever the wire's precision."""
    return encode(tensor, "bf16" if tensor.dtype == torch.bfloat16 else "fp32")


def nbytes(*arrays: Array | None) -> int:
    """Of all that are there."""
    return sum(array.nbytes for array in arrays if array is not None)


def encode_output(output: TeacherOutput, precision: Precision = "fp32") -> tuple[Array | None, ...]:
    """Logits, embedding and sums as arrays; sums are fp32 or wider whatever the precision."""
    sums = output.sums
    return (
        None if output.logits is None else encode(output.logits, precision),
        None if output.embedding is None else encode(output.embedding, precision),
        *(
            (None,) * 3
            if sums is None
            else (encode(sums.count), encode(sums.first), encode(sums.second))
        ),
    )


def decode_output(
    arrays: tuple[Array | None, ...], device: torch.device | None = None
) -> TeacherOutput:
    """The inverse of `encode_output`."""
    logits, embedding, count, first, second = (
        None if a is None else decode(a, device) for a in arrays
    )
    if count is None or first is None or second is None:
        return TeacherOutput(logits, embedding)
    return TeacherOutput(logits, embedding, BatchNormSums(count, first, second))


def encode_gradient(
    gradient: InputGradient, precision: Precision = "fp32"
) -> tuple[Array | None, ...]:
    """The gradients of inputs and gate as arrays."""
    gate = None if gradient.gate is None else encode(gradient.gate, precision)
    return encode(gradient.inputs, precision), gate


def decode_gradient(
    arrays: tuple[Array | None, ...], device: torch.device | None = None
) -> InputGradient:
    """The inverse of `encode_gradient`; the gradient of the inputs may only be read."""
    inputs, gate = arrays
    assert inputs is not None
    read = decode(inputs, device, read=True)
    return InputGradient(read, None if gate is None else decode(gate, device))
