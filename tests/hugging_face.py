"""Tiny Hugging Face image classifiers, as if they had been trained, and their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ["resnet", "convnext"]
PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
}
STRANGERS: dict[str, dict[str, Any]] = {
    "resnet": {"labels": ["a", "b", "c"], "task": "single_label"},
    "convnext": {"labels": ["d", "e"], "task": "multi_label"},
}
"""A softmax and a sigmoid teacher, by kind, which is their name too."""
_OWN: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 4, "layer_type": "basic", "downsample_in_first_stage": True},
    "convnext": {"num_stages": 3, "patch_size": 2},
}


def blocks(kind: str) -> list[str]:
    """The names of its three stages."""
    return [f"{kind}.encoder.stages.{index}" for index in range(3)]


def classifier(kind: str, labels: Sequence[str], task: str) -> nn.Module:
    """A network as transformers makes it.

    Args:
        task: single_label or multi_label.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    design = AutoConfig.for_model(
        kind,
        hidden_sizes=[4, 6, 8],
        depths=[1, 1, 1],
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=f"{task}_classification",
        **_OWN[kind],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = AutoModelForImageClassification.from_config(design).eval()
        for value in network.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.copy_(0.5 + torch.rand_like(value))
    return network


def save(network: nn.Module, folder: Path) -> Path:
    """Save it as transformers does; the folder."""
    network.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def save_strangers(place: Path) -> list[dict[str, Any]]:
    """Save each of `STRANGERS` in a folder of its name; them as teachers of a run beside it."""
    for kind, own in STRANGERS.items():
        save(classifier(kind, **own), place / kind)
    return [{"name": k, "source": f"hf:./{k}", "blocks": blocks(k)} for k in STRANGERS]


def tail_of(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A branch's tensors in the state of a target, by the names that they have in transformers."""
    start = f"tails.{kind}."
    own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    return {name.partition(".")[2].removeprefix("network."): value for name, value in own.items()}


def behind(depth: int, kind: str, file: Mapping[str, Tensor]) -> set[str]:
    """The names of a file's tensors that belong to later stages than these, or to the head; but
    for counters, which no frozen network needs."""
    before = (f"{kind}.embedd", *(f"{name}." for name in blocks(kind)[:depth]))
    names = {name for name in file if not name.endswith("num_batches_tracked")}
    return {name for name in names if not name.startswith(before)}
