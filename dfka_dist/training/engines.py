"""DeepSpeed, kept in one room: a network with its optimiser, stepped by explicit cotangents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from dfka_dist.config import Precision
from dfka_dist.training import universal
from dfka_dist.training.checkpoint import Reading, Writing, read_state, refuse_code, write_state
from dfka_dist.training.collectives import rank_and_size, share_timeout
from dfka_dist.training.compiling import await_compilers
from dfka_dist.training.shards import failing_late

Optimizer = Literal["adam", "sgd"]
BUCKET = 500_000_000
"""Values, of DeepSpeed's own `reduce_bucket_size`."""
HARMLESS = (LossScaler, ZeroStageEnum, fragment_address)
"""Classes of DeepSpeed's in its shards."""
TAG = "engine"
"""Name of the folder of DeepSpeed's shards."""
SHARD = "zero_pp_rank_"
"""What the names of files say that one rank reads alone, before its number."""


def fitting(wanted: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """The precision to compute in: bf16 pays on GPUs, and on CPUs that multiply in it."""
    if wanted != "auto":
        return wanted
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cuda" or multiplies else "fp32"


class Engine:
    """One trainable network under ZeRO.

    Args:
        network: a plain module, its parameters contiguous; only those that require gradients are
        trained.
        micro_batch: images a step on this worker (bookkeeping of DeepSpeed's).
        more: of DeepSpeed's configuration, nothing that is said here.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        micro_batch: int,
        zero_stage: int,
        precision: Precision,
        rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        optimizer: Optimizer = "adam",
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        device = next(network.parameters()).device
        if precision == "bf16":
            # Inside the module: the engine switches off an autocast that it finds around itself.
            autocast = torch.autocast(device.type, torch.bfloat16)
            network.forward = autocast(network.forward)
        self.network = network
        await_compilers()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        own = _configuration(micro_batch, zero_stage, rate, betas, optimizer)
        own["zero_optimization"]["reduce_bucket_size"] = _bucket(trained)
        self._engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=trained,
            config=merged(own, more),
            dist_init_required=not torch.distributed.is_initialized(),
        )
        share_timeout()

    def __call__(self, *inputs: Tensor | None) -> Any:
        """The network's outputs, to be followed by `step`."""
        return self._engine(*inputs)

    def step(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], rate: float) -> None:
        """Carry cotangents from outputs of the last call to the parameters, average over workers,
        and step."""
        torch.autograd.backward(list(outputs), list(cotangents))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()

    def state(self) -> dict[str, Tensor]:
        """The whole network's state on this worker, copied to the CPU; a collective."""
        parameters = list(self.network.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=_partitioned(parameters)):
            return {
                name: value.detach().cpu().clone()
                for name, value in self.network.state_dict().items()
            }

    def is_finite(self) -> bool:
        """See `ledger.Trained`; of partitioned parameters this rank's parts."""
        own = [getattr(each, "ds_tensor", each) for each in self.network.parameters()]
        own += [buffer for _, buffer in self._buffers if buffer.is_floating_point()]
        return all(bool(value.isfinite().all()) for value in own)

    def save(self, writing: Writing, name: str) -> None:
        """Parameters and moments in DeepSpeed's own shards, buffers of every rank beside them; a
        collective.

        Raises:
            OSError: this rank's cannot be written; the others' may be.
        """
        place = writing.under(name)
        with failing_late(self._engine):
            self._engine.save_checkpoint(str(place), tag=TAG, save_latest=False)
        buffers = place / f"buffers-{writing.rank}.safetensors"
        write_state(buffers, dict(self._buffers))
        if not self._engine.zero_elastic_checkpoint():  # which would read those of all
            writing.claim(buffers, *place.rglob(f"*{SHARD}{writing.rank}_*"))

    def restore(self, reading: Reading, name: str) -> None:
        """Become what was saved; a collective.

        Saved by another number of workers, parameters and moments are shared out anew, and buffers
        are what `average_buffers` would have made of theirs.
        """
        place = reading.folder / name
        refuse_code(place, HARMLESS)
        rank, size = rank_and_size()
        if reading.workers == size:
            self._engine.load_checkpoint(str(place), tag=TAG)
            saved = [read_state(place / f"buffers-{rank}.safetensors")]
        else:
            universal.load(self._engine, place, TAG, reading.desk)
            ranks = range(reading.workers)
            saved = [read_state(place / f"buffers-{each}.safetensors") for each in ranks]
        for key, buffer in self._buffers:
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([own[key] for own in saved]).mean(0))
            else:
                buffer.copy_(saved[0][key])

    @property
    def _buffers(self) -> list[tuple[str, Tensor]]:
        return list(self.network.named_buffers())

    def destroy(self) -> None:
        """Give back what DeepSpeed holds."""
        self._engine.destroy()


def _configuration(
    micro_batch: int, zero_stage: int, rate: float, betas: tuple[float, float], optimizer: Optimizer
) -> dict[str, Any]:
    adam = {
        "type": "Adam",
        "params": {
            "lr": rate,
            "betas": list(betas),
            "weight_decay": 0.0,
            "adam_w_mode": False,
            "torch_adam": True,
            "fused": True,
        },
    }
    sgd = {"type": "SGD", "params": {"lr": rate, "momentum": 0.0, "weight_decay": 0.0}}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "optimizer": adam if optimizer == "adam" else sgd,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def _bucket(trained: Sequence[nn.Parameter]) -> int:
    """Values of gradients that are averaged at once: all, or as many as DeepSpeed would by itself.

    It takes memory for a whole bucket at every step, 2 GB by its own default, however small the
    network is.
    """
    values = sum(getattr(each, "ds_numel", each.numel()) for each in trained)
    return min(values, BUCKET)


def merged(ours: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two configurations as one, mappings within them too; where both say something, the second."""
    found = dict(ours)
    for key, value in more.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        found[key] = value
    return found


def _partitioned(parameters: Sequence[nn.Parameter]) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in parameters)
