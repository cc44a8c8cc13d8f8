"""Schemas of Kubernetes and of KubeRay, and the arguments that jobs take."""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from dfka_dist import commandline
from dfka_dist.errors import InputError

KUBERNETES = "1.31"
KUEUE = "kueue.x-k8s.io/"
"""Kinds of Kueue's, of which kueue.yaml has the shapes."""
VARIABLE = "DFKA_KUBERAY_SCHEMAS"
FILES = {"RayCluster": "rayclusters.v1.json.gz", "RayJob": "rayjobs.v1.json.gz"}
HOW = (
    f"{VARIABLE} names no folder with {' and '.join(FILES.values())}. They are made of the files "
    "ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of the release v1.7.0 of ray-project/kuberay, "
    "in helm-chart/kuberay-operator/crds: the schema of version v1 of each, as JSON in a field "
    "openAPIV3Schema, packed with gzip."
)


def kuberay_folder() -> Path | None:
    """The folder with KubeRay's schemas, if it is there."""
    folder = Path(os.environ.get(VARIABLE, "/nowhere"))
    return folder if all((folder / name).is_file() for name in FILES.values()) else None


def kuberay_errors(manifest: dict[str, Any]) -> Iterator[str]:
    """What KubeRay's schema says of a RayCluster or RayJob; nothing where there is no schema."""
    if kuberay_folder() is None:
        return
    yield from _errors(_kuberay(manifest["kind"]), manifest)


def kueue_errors(manifest: dict[str, Any]) -> Iterator[str]:
    """What our own shapes say of one of Kueue's kinds."""
    shapes = yaml.safe_load(Path(__file__).with_name("kueue.yaml").read_text(encoding="utf-8"))
    if manifest["kind"] in shapes:
        yield from _errors(jsonschema.Draft202012Validator(shapes[manifest["kind"]]), manifest)
    else:
        yield f"{manifest['kind']} is none of {', '.join(shapes)}"


def _errors(schema: jsonschema.Draft202012Validator, manifest: dict[str, Any]) -> Iterator[str]:
    for error in schema.iter_errors(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{manifest['metadata'].get('name')}: {where}: {error.message[:200]}"


def core_errors(manifest: dict[str, Any]) -> Iterator[str]:
    """What Kubernetes' own schema says of one of its kinds."""
    group = manifest["apiVersion"]
    if manifest["kind"] in FILES or group.startswith(KUEUE):
        return
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        name = manifest["metadata"].get("name")
        yield f"{manifest['kind']} {name}: {where}: {error.message[:200]}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{group} has no kind {manifest['kind']}"


def argument_errors(words: Sequence[str]) -> Iterator[str]:
    """What the parser of the jobs that train says of their arguments."""
    parser = commandline.parser("")
    commandline.add_nodes_and_resume(parser, "")
    try:
        commandline.refuse_misfits(parser.parse_args(words))
    except InputError as error:
        yield str(error)


@functools.cache
def _kuberay(kind: str) -> jsonschema.Draft202012Validator:
    folder = kuberay_folder()
    assert folder is not None
    with gzip.open(folder / FILES[kind]) as file:
        schema = closed(json.load(file)["openAPIV3Schema"])
    return jsonschema.Draft202012Validator(schema)


def closed(schema: Any) -> Any:
    """A schema as an apiserver takes it: unknown keys are refused, a few types are two."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made["type"] = ["integer", "string"]
    properties = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
