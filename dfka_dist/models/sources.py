"""Where a teacher's network and its weights come from, and every way in which they can be wrong."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from pyarrow import ArrowException
from pyarrow import fs as arrow_fs
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dfka_dist.config import PRESETS, TeacherSpec
from dfka_dist.errors import InputError
from dfka_dist.models import huggingface
from dfka_dist.models.backbones import BUILTIN

State = dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """What a weight file holds."""

    state: State
    sha256: str


def build(spec: TeacherSpec, key: str) -> nn.Module:
    """The network of a teacher with its initial, random weights.

    Args:
        key: where the teacher stands in the configuration, for errors.

    Raises:
        InputError: the source cannot be found or does not take the arguments.
    """
    kind, _, name = spec.source.partition(":")
    if kind == "hf":
        return huggingface.build(spec, key)
    arguments = dict(spec.arguments)
    if kind == "builtin":
        if name not in BUILTIN:
            raise InputError(
                f"{key}.source", f"no built-in network {name!r}", f"one of {', '.join(BUILTIN)}"
            )
        factory: Callable[..., object] = BUILTIN[name]
        arguments = {"channels": spec.input.channels, "labels": len(spec.labels)} | arguments
    else:
        factory = _imported(kind, name, f"{key}.source")
    try:
        network = factory(**arguments)
    except (
        Exception,
        SystemExit,
    ) as error:  # foreign code: whatever it raises, the user hears of it
        expected = isinstance(error, TypeError | ValueError)
        what = str(error) if expected else f"{type(error).__name__}: {error}"
        raise InputError(f"{key}.arguments", what, f"what {spec.source} takes") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{key}.source",
            f"{spec.source} gives a {type(network).__name__}",
            "a callable that gives a torch.nn.Module",
        )
    return network


def read_weights(spec: TeacherSpec, key: str) -> Weights:
    """The state of a teacher, from its file.

    Raises:
        InputError: the file is missing, truncated, a pickle, or of another kind.
    """
    place = f"{key}.weights"
    if spec.weights is None:
        raise InputError(place, "is missing", "a .safetensors or .pt file")
    content = _read(spec.weights, place)
    if spec.weights.endswith(".index.json"):
        return _read_shards(content, spec.weights, place)
    return Weights(_state(content, spec.weights, place), hashlib.sha256(content).hexdigest())


def read_all_weights(specs: Sequence[TeacherSpec]) -> dict[str, Weights]:
    """The weights of every teacher of a run, by name.

    Raises:
        InputError: the first thing that is wrong.
    """
    return {spec.name: read_weights(spec, f"teachers.{index}") for index, spec in enumerate(specs)}


def initial_weights(specs: Sequence[TeacherSpec], seed: int) -> dict[str, Weights]:
    """Random weights in place of teachers of whom only the architecture is known.

    Raises:
        InputError: a source cannot be built.
    """
    made = {}
    for index, spec in enumerate(specs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + 10 + index)
            made[spec.name] = Weights(build(spec, f"teachers.{index}").state_dict(), "")
    return made


def load_state(network: nn.Module, state: State, key: str) -> None:
    """Load a teacher's state into its network; every tensor must find its place.

    The network computes in float64 if that is what was saved, and otherwise in fp32.

    Raises:
        InputError: naming the tensors that are missing, left over or of another shape.
    """
    own = network.state_dict()
    wrong = [
        f"{name} is missing"
        for name in own
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    wrong += [f"{name} has no place" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise InputError(
            f"{key}.weights",
            f"do not belong to this architecture: {'; '.join(wrong[:4])}{more}",
            "the weights that were trained with this source and these labels",
        )
    if {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float64}:
        network.double()
    network.load_state_dict(state, strict=False)


def _state(content: bytes, uri: str, key: str) -> State:
    path = PurePosixPath(uri)
    if path.suffix == ".safetensors":
        return _from_safetensors(content, uri, key)
    if path.suffix in (".pt", ".pth") or path.match("pytorch_model*.bin"):
        return _from_torch(content, uri, key)
    raise InputError(
        key, f"{uri} is neither .safetensors nor .pt", "save the state dict as .safetensors"
    )


def _read_shards(index: bytes, uri: str, key: str) -> Weights:
    """Files that lie beside their index, as transformers writes them; all of them are hashed."""
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
        whole = bool(names) and all(name == PurePosixPath(name).name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(key, f"{uri} lists no files of weights", "an intact index")
    state: State = {}
    digest = hashlib.sha256(index)
    for name in names:
        place = uri.rpartition("/")[0] + f"/{name}"
        content = _read(place, key)
        digest.update(content)
        state |= _state(content, place, key)
    return Weights(state, digest.hexdigest())


def _imported(module: str, name: str, key: str) -> Callable[..., object]:
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # foreign code, as in `build`
        what = f"cannot import {module}: {error}"
        raise InputError(key, what, "an importable package.module:callable") from error
    if found is None:
        raise InputError(key, f"{module} has no {name!r}", "a callable of that module")
    if not callable(found):
        raise InputError(
            key, f"{module}:{name} cannot be called", "a callable that gives a torch.nn.Module"
        )
    factory: Callable[..., object] = found
    return factory


def _read(uri: str, key: str) -> bytes:
    if uri.startswith("preset:"):
        uri = str(PRESETS / uri.removeprefix("preset:"))
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(uri)
        with filesystem.open_input_file(path) as stream:
            return bytes(stream.readall())
    except (OSError, ArrowException, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = f"{uri} does not exist" if missing else f"{uri} cannot be read: {error}"
        raise InputError(key, what, "a file or a pyarrow.fs URI that can be read") from error


def _from_safetensors(content: bytes, uri: str, key: str) -> State:
    try:
        state: State = load_safetensors(content)
        return state
    except SafetensorError as error:
        raise InputError(
            key, f"{uri} is truncated or no safetensors file: {error}", "an intact file"
        ) from error


def _from_torch(content: bytes, uri: str, key: str) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever is wrong is said in one line
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            key,
            f"{uri} holds pickled code, not only tensors",
            "torch.save(model.state_dict(), ...)",
        ) from error
    except Exception as error:  # torch's unpickler has no common error of its own
        raise InputError(key, f"{uri} is truncated or no torch file", "an intact file") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise InputError(key, f"{uri} holds no state dict", "torch.save(model.state_dict(), ...)")
    return dict(loaded)
