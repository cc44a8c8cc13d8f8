"""Tiny Hugging Face image classifiers, as if they had been trained, and their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
