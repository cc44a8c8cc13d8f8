"""A configuration from YAML and back.

`load` reads a file, applies `--set dotted.key=value` and makes every path absolute. Whatever is
wrong becomes one `InputError` that names the key and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl

import yaml
from pydantic import ValidationError

from dfka_dist.config import Node, RunConfig
from dfka_dist.errors import InputError

HARMLESS = (
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "blob_storage_authority",
    "blob_storage_scheme",
    "buffer_size",
    "check_directory_existence_before_creation",
    "default_block_size",
    "dfs_storage_authority",
    "dfs_storage_scheme",
    "enable_tls",
    "endpoint_override",
    "force_virtual_addressing",
    "region",
    "replication",
    "retry_limit_seconds",
    "scheme",
    "smart_defaults",
    "tls_ca_dir_path",
    "tls_ca_file_path",
    "tls_verify_certificates",
)
"""What the query of a URI may say of a file system; pyarrow takes secrets there too."""
_SECRETS = "none in the URI; AWS_ACCESS_KEY_ID and so on in the environment, or a role"
MOST = 1_000_000
"""Values of a file, all that its aliases stand for counted; ten lines can stand for billions."""


def load(
    path: str | Path,
    assignments: list[str] | None = None,
    complete: Callable[[dict[str, Any], Path], dict[str, Any]] = lambda tree, _folder: tree,
) -> RunConfig:
    """Read a YAML file, apply `dotted.key=value` assignments, and validate the result.

    Args:
        complete: adds to the tree what the user leaves to other files to say; it is given the tree
            and the folder where relative paths start.

    Raises:
        InputError: the file, an assignment or a value is wrong.
    """
    folder = Path(path).resolve().parent
    tree = _read(Path(path))
    for assignment in assignments or []:
        _assign(tree, assignment)
    return _absolute(parse(complete(tree, folder)), folder)


def parse(tree: object) -> RunConfig:
    """Validate a tree of plain data.

    Raises:
        InputError: with the first thing that is wrong.
    """
    _refuse_passwords(tree, "", set())
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _first(error, tree) from None


def _refuse_passwords(tree: object, key: str, seen: set[int]) -> None:
    """What is configured is written to reports, logs and checkpoints.

    Args:
        seen: ids of mappings and lists that were looked at.
    """
    if isinstance(tree, str) and re.search(r"://[^\s?]*:[^\s?]*@", tree):
        raise InputError(key, "holds a password", _SECRETS)
    if isinstance(tree, str) and (query := re.search(r"://[^\s?#]*\?(.*)", tree, re.DOTALL)):
        for name, _ in parse_qsl(query[1], keep_blank_values=True):
            if name not in HARMLESS:
                what = f"holds {name[:40]!r} in its query, which may be a secret"
                raise InputError(key, what, _SECRETS)
    if isinstance(tree, dict | list) and id(tree) not in seen:
        seen.add(id(tree))
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            _refuse_passwords(value, f"{key}.{name}".lstrip("."), seen)


def dump(config: RunConfig) -> str:
    """The whole configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes 2e-3 for a number, which YAML 1.1 wants written 2.0e-3, and refuses a
    key that stands twice, and aliases that stand for more than a configuration holds."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _refuse_swollen(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counted = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = next((key for key, times in counted.items() if times > 1), None)
        if twice is not None:
            raise _unfit(node, f"the key {twice!r} stands twice")
        return super().construct_mapping(node, deep)


def _unfit(node: yaml.Node, what: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _refuse_swollen(root: yaml.Node) -> None:
    """Whoever walks a tree goes again through what is named again.

    Raises:
        yaml.constructor.ConstructorError: it holds more than `MOST`, or itself.
    """
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise _unfit(node, "it holds itself")
            return known
        sizes[id(node)] = None
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (p for each in inner for p in (each if isinstance(each, tuple) else (each,)))
        sizes[id(node)] = whole = 1 + sum(map(size, parts))
        if whole > MOST:
            raise _unfit(node, f"its aliases stand for more than {MOST:,} values")
        return whole

    size(root)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def plain(text: str) -> Any:
    """What YAML says, as plain data.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is none, or stands for too much.
    """
    return yaml.load(text, Loader=_Loader)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("--config", f"{path} does not exist", "a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise InputError(
            "--config", f"{path} cannot be read: {reason}", "a readable YAML file"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            "--config", f"{path}{where} is not YAML: {problem}", "valid YAML"
        ) from None
    if not isinstance(tree, dict):
        raise InputError(
            "--config", f"{path} holds no mapping", "sections such as run, teachers, training"
        )
    return tree


def _assign(tree: dict[str, Any], assignment: str) -> None:
    key, found, text = assignment.partition("=")
    if not found or not all(key.split(".")):
        raise InputError("--set", f"{assignment!r} assigns nothing", "dotted.key=value")
    try:
        value = plain(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(key, f"{text!r} is not a YAML value", "a number, text or [list]") from None
    *path, last = key.split(".")
    place: Any = tree
    for depth, part in enumerate(path):
        place = _step_into(place, part, ".".join(path[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _step_into(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        inner = place[_index(place, part, key)]
    else:
        inner = place.setdefault(part, {})
        if inner is None:
            inner = place[part] = {}
    if not isinstance(inner, dict | list):
        raise InputError(
            key, "holds a single value, nothing can be set inside it", "a section or a list"
        )
    return inner


def _index(place: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise InputError(key, f"{part!r} is no element of that list", f"0 to {len(place) - 1}")
    return int(part)


def _absolute(config: RunConfig, folder: Path) -> RunConfig:
    """Every relative path as an absolute one; `preset:` names and URIs stay as they are."""
    teachers = [
        t.model_copy(update={"weights": located(t.weights, folder)}) for t in config.teachers
    ]
    kept = config.training.checkpoint
    checkpoint = kept.model_copy(update={"storage": located(kept.storage, folder)})
    trial, images = {}, "training.images"
    if config.search is not None:
        trial = dict(config.search.trial)
        if isinstance(trial.get(images), str):
            trial[images] = _source(trial[images], folder)
    evaluations = {}
    for name, spec in config.evaluations.items():
        evaluations[name] = spec.model_copy(update={"source": _source(spec.source, folder)})
    return config.model_copy(
        update={
            "teachers": teachers,
            "evaluations": evaluations,
            "search": config.search and config.search.model_copy(update={"trial": trial}),
            "target": config.target.model_copy(
                update={"start": located(config.target.start, folder)}
            ),
            "training": config.training.model_copy(
                update={
                    "images": _source(config.training.images, folder),
                    "archive": located(config.training.archive, folder),
                    "checkpoint": checkpoint,
                }
            ),
        }
    )


def _source(source: str | None, folder: Path) -> str | None:
    """An image source with an absolute place."""
    kind, colon, place = (source or "").partition(":")
    return f"{kind}:{located(place, folder)}" if colon else source


def located(place: str | None, folder: Path) -> str | None:
    """A path as an absolute one; `preset:` names and URIs stay as they are.

    A file that is a link keeps its own name, which says of what kind it is.
    """
    if place is None or place.startswith("preset:") or re.match(r"^[a-z][a-z0-9+]*://", place):
        return place
    try:
        path = folder / Path(place).expanduser()
        return str(path.resolve() if path.name == ".." else path.parent.resolve() / path.name)
    except (RuntimeError, OSError, ValueError):
        return place  # whoever opens it says what is wrong with it


def _first(error: ValidationError, tree: object) -> InputError:
    problems = error.errors()
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    # A union reports once per member: the deepest says most, and equally deep ones are all true.
    location, alike = _deepest(unknown or problems, tree)
    key = ".".join(str(part) for part in location) or "--config"
    problem = alike[0]
    if problem["type"] == "extra_forbidden":
        return InputError(key, "unknown key", _nearest(location))
    if problem["type"] == "missing":
        return InputError(key, "is missing", "give it a value")
    what, _, remedy = problem["msg"].removeprefix("Value error, ").partition(" || ")
    if remedy:
        return InputError(key, what, remedy)
    wanted = dict.fromkeys(p["msg"][:1].lower() + p["msg"][1:] for p in alike)
    return InputError(key, f"{_shown(problem['input'])} does not fit", ", or ".join(wanted))


def _deepest(problems: Sequence[Any], tree: object) -> tuple[list[int | str], list[Any]]:
    """The first problem's location, or the deepest below it, and all problems there."""
    located = [(_written_location(problem, tree), problem) for problem in problems]
    first = located[0][0]
    below = [location for location, _ in located if location[: len(first)] == first]
    deepest = max(below, key=len)
    return deepest, [problem for location, problem in located if location == deepest]


def _written_location(problem: Any, tree: object) -> list[int | str]:
    """The part of pydantic's location that the user wrote, without the names of union members; and
    what is missing there."""
    written: list[int | str] = []
    place, location = tree, problem["loc"]
    for at, part in enumerate(location):
        missing = problem["type"] == "missing" and at == len(location) - 1
        if isinstance(place, dict) and (part in place or missing):
            written.append(part)
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            written.append(part)
            place = place[part]
    return written


def _nearest(location: list[int | str]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        model = _inner(model, part)
    known = list(model.model_fields) if model is not None else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"


def _inner(model: Any, part: int | str) -> Any:
    """The node behind one step of a location, for a model, a list of models or a mapping to
    models."""
    if not (isinstance(model, type) and issubclass(model, Node)):
        return model
    if str(part) not in model.model_fields:
        return model  # an index into a list of it, or a key of a mapping to it
    annotation = model.model_fields[str(part)].annotation
    return next(
        (
            a
            for a in [annotation, *_leaves(annotation)]
            if isinstance(a, type) and issubclass(a, Node)
        ),
        None,
    )


def _leaves(annotation: Any) -> list[Any]:
    return [leaf for argument in get_args(annotation) for leaf in [argument, *_leaves(argument)]]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
