"""What the overlays render, as far as that can be known without a cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import planning
import pytest
import reading
import rules
import schemas
import yaml
from reading import OVERLAYS

from dfka_dist import __version__
from dfka_dist.config import RunConfig

Rendered = Callable[[str], list[dict[str, Any]]]
OF_THE_CLUSTER = {
    "run": {"address"},
    "training": {
        "checkpoint",
        "node_labels",
        "start_timeout",
        "threads",
        "workers",
        "worker_gpus",
        "worker_cpus",
    },
    "serving": {
        "node_labels",
        "gpus",
        "gpu_gigabytes",
        "start_timeout",
        "wait_for_nodes",
    },
}
"""Keys that a cluster may say otherwise than the preset."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_breaks_no_rule(rendered: Rendered, overlay: str) -> None:
    assert rules.broken(rendered(overlay)) == []


def test_kuberays_schemas_are_there() -> None:
    if schemas.kuberay_folder() is None:
        if os.environ.get("CI") or schemas.VARIABLE in os.environ:
            pytest.fail(schemas.HOW)
        pytest.skip(schemas.HOW)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_both_jobs_and_an_interactive_cluster(
    rendered: Rendered, overlay: str
) -> None:
    made = list(reading.of_kind(rendered(overlay), "RayJob", "RayCluster"))

    assert {each["metadata"]["name"]: bool(each["spec"].get("suspend")) for each in made} == {
        "dfka-amalgamate": overlay == "kueue",  # who wakes it
        "dfka-tune": True,
        "dfka-interactive": True,
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_have_the_pods_of_the_interactive_cluster(rendered: Rendered, overlay: str) -> None:
    first, *others = (cluster for _, cluster in reading.clusters(rendered(overlay)))
    shared = {key: value for key, value in first.items() if key != "suspend"}

    assert [_unclaimed(each) == _unclaimed(shared) for each in others] == [True, True]


def _unclaimed(cluster: dict[str, Any]) -> str:
    """But for the claims of heads: a disk of its own for each is what overlays may add."""
    return re.sub(r"'claimName': 'dfka-data[a-z-]*'", "", str(cluster))


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("file", ["run.yaml", "search.yaml"])
def test_a_run_is_its_preset_and_what_a_cluster_adds(
    rendered: Rendered, overlay: str, file: str
) -> None:
    made = dict(planning.runs(rendered(overlay)))[f"dfka-run/{file}"]

    assert _comparable(made, file) == _comparable(planning.preset("digits"), "run.yaml")


def _comparable(config: RunConfig, file: str) -> dict[str, Any]:
    tree = config.model_dump(exclude={"search"})
    for section, keys in OF_THE_CLUSTER.items():
        for key in keys | ({"name"} if section == "run" else set()):
            tree[section].pop(key, None)
    assert config.run.name == ("digits" if file == "run.yaml" else "digits-search")
    return tree


def test_all_overlays_run_one_version() -> None:
    """Tags of images, the Dockerfile's Ray, the manifests' Ray and the package's agree."""
    base = reading.ROOT / "cluster"
    tags = {
        image["newTag"].removesuffix("-gpu")
        for overlay in OVERLAYS
        for image in _yaml(base / f"kubernetes/overlays/{overlay}/kustomization.yaml")["images"]
    }

    assert tags == {__version__}
    for place in ("Dockerfile", "README.md"):
        text = (base / place).read_text(encoding="utf-8")
        assert set(re.findall(r"dfka-dist:([0-9.]+\d)(?:-gpu)?\b", text)) == tags, place


def test_only_the_gpu_overlay_has_the_gpu_image() -> None:
    base = reading.ROOT / "cluster" / "kubernetes" / "overlays"
    images = {o: _yaml(base / o / "kustomization.yaml")["images"][0]["newTag"] for o in OVERLAYS}

    assert {o for o, tag in images.items() if tag.endswith("-gpu")} == {"gpu"}


def test_every_pod_runs_the_ray_that_the_image_has(rendered: Rendered) -> None:
    dockerfile = (reading.ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    built = re.search(r"^ARG RAY_VERSION=(.+)$", dockerfile, re.MULTILINE)
    project = (reading.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    allowed = re.search(r'"ray\[[^]]*\]>=(\d+)\.(\d+),<(\d+)"', project)
    assert built is not None and allowed is not None
    major, minor = (int(part) for part in built[1].split(".")[:2])

    asked = {
        cluster["rayVersion"] for o in OVERLAYS for _, cluster in reading.clusters(rendered(o))
    }

    assert asked == {built[1]}
    assert (int(allowed[1]), int(allowed[2])) <= (major, minor) < (int(allowed[3]), 0)
    assert version("ray").split(".")[:2] == built[1].split(".")[:2]


def _yaml(path: Any) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree
