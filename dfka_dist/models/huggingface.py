"""The room of transformers: Hugging Face image classifiers, built from their configs alone.

Code that comes with a model is never run, and building one needs no file and no network access.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfka_dist.config import TeacherSpec
from dfka_dist.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""What finds a model on the hub from anywhere."""

IGNORED = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "id2label",  # the teacher's `labels` say it, so that a thousand names stand there once
        "label2id",
        "dtype",  # what the weights were saved in decides
        "torch_dtype",
        "attn_implementation",  # may name a kernel that would have to be fetched
        "_attn_implementation",
    }
)
"""What a config.json may hold and no network is built by."""

_ELSEWHERE = {"timm_wrapper"}  # builds networks of another library, by names that it may fetch


def build(spec: TeacherSpec, key: str) -> nn.Module:
    """The network of a completed teacher, with random weights and nobody's random numbers used.

    It maps normalised images (N, C, H, W) to logits (N, K); its modules and tensors have the names
    that they have in transformers.

    Raises:
        InputError: `arguments.config` describes no image classifier, or needs code of its own.
    """
    place = f"{key}.arguments"
    config = spec.arguments.get("config")
    if not isinstance(config, dict) or len(spec.arguments) > 1:
        given = ", ".join(spec.arguments) or "nothing"
        raise InputError(place, f"hold {given}", "config alone, the content of config.json")
    check_architecture(config, place)
    channels = config.get("num_channels", spec.input.channels)
    if channels != spec.input.channels:
        raise InputError(
            f"{key}.input.channels",
            f"is {spec.input.channels} for a network of {channels}",
            str(channels),
        )
    with _quiet(place), torch.random.fork_rng(devices=[]):
        try:
            network = _network(config)
        except Exception as error:  # transformers has no common error of its own
            what = f"config describes no network: {error}"
            remedy = "the content of an image classifier's config.json"
            raise InputError(place, what, remedy) from error
    network.register_forward_hook(_logits)
    return network


def _network(config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    arguments = {name: value for name, value in config.items() if name not in IGNORED}
    design = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    # Eager, in all parts of the network, because torch.export can trace it.
    network: nn.Module = AutoModelForImageClassification.from_config(
        design, trust_remote_code=False, attn_implementation="eager"
    )
    return network


def _logits(_network: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    """Logits come first in what an image classifier gives; only a loss would precede them."""
    logits: Tensor = output[0]
    return logits


def check_architecture(config: Mapping[str, Any], key: str) -> None:
    """Refuse what cannot be built from the config alone, and what is no image classifier."""
    if "auto_map" in config:
        raise InputError(key, "the model needs code of its own (auto_map)", "one without such code")
    if config.get("quantization_config") is not None:
        raise InputError(key, "the model is quantized", "the weights before quantization")
    kind, written = str(config.get("model_type")), config.get("architectures")
    with _quiet(key):
        from transformers.models.auto import modeling_auto

        names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind, ())
    classes = [names] if isinstance(names, str) else list(names)
    if not classes or kind in _ELSEWHERE:
        what = f"a model of the type {kind!r} is no image classifier"
        raise InputError(key, what, "a saved AutoModelForImageClassification")
    if isinstance(written, list) and written and not any(name in classes for name in written):
        what = f"a {written[0]} is no image classifier"
        raise InputError(key, what, f"a saved {classes[0]}")


def downloaded(name: str, key: str, wanted: Sequence[str]) -> Path:
    """The folder in huggingface_hub's cache where those files of a model lie that it has.

    Args:
        wanted: patterns of file names.

    Raises:
        InputError: the model is not in the cache and cannot be fetched.
    """
    with _quiet(key):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=list(wanted)))
        except Exception as error:  # the hub, the network, the disk: whatever it is, one line
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(
                key,
                f"{name} is no folder here and cannot be fetched from the hub: {reason}",
                "an existing folder, or the id of a public model",
            ) from error


@contextmanager
def _quiet(key: str) -> Iterator[None]:
    """Load transformers, and while it is at work keep it from talking.

    Raises:
        InputError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from transformers.utils import logging as talk
        except ImportError as error:
            raise InputError(
                key, f"transformers cannot be imported: {error}", "pip install 'dfka_dist[hf]'"
            ) from error
        before = talk.get_verbosity()
        talk.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            talk.set_verbosity(before)
