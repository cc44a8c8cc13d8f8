"""Tiny parts that all tests share, and a guard against what a test may leave behind.

Fixtures called `make_...` and `load_...` are factories of session scope: fixtures of any scope may
call them, and every call gives something of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
import torch
from objectstore import ObjectStore
from safetensors.torch import save_file
from torch import nn

from dfka_dist.config import InputSpec, RunConfig, Task, TeacherSpec
from dfka_dist.loading import parse
from dfka_dist.models.backbones import ConvNet
from dfka_dist.models.sources import read_weights
from dfka_dist.models.target import Architecture, BranchPoint, TargetNet, version
from dfka_dist.teachers.local import LocalTeachers
from dfka_dist.teachers.teacher import Teacher
from dfka_dist.training.branching import build_target

torch.set_num_threads(1)

WIDTHS = (4, 6, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults",
        choices=["some", "all"],
        default="some",
        help="some: one case of every mechanism, among all other tests; all: tests/cluster, whole, "
        "and nothing else",
    )
    parser.addoption(
        "--faults-report",
        metavar="FILE",
        help="where tests/cluster leave what happened to each of their runs, as JSON",
    )
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run tests that are one more case of what another shows, too",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Nodes have copies of what DeepSpeed compiles, once others have had it compiled.
    items.sort(key=_of_the_cluster)
    left = [item for item in items if not _is_wanted(item, config)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if _is_wanted(item, config)]


def _is_wanted(item: pytest.Item, config: pytest.Config) -> bool:
    if config.getoption("--faults") == "all":
        return _of_the_cluster(item)
    return config.getoption("--exhaustive") or not item.get_closest_marker("exhaustive")


def _of_the_cluster(item: pytest.Item) -> bool:
    return item.path.parent.name == "cluster"


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves a process group or a changed environment behind."""
    before, had_group = _environment(), torch.distributed.is_initialized()
    yield
    grouped = torch.distributed.is_initialized() and not had_group
    if grouped:
        torch.distributed.destroy_process_group()
    after = _environment()
    changed = sorted(key for key in before | after if before.get(key) != after.get(key))
    for key in changed:  # the next test shall not suffer for it
        os.environ.pop(key, None)
        os.environ.update({key: before[key]} if key in before else {})
    assert not grouped, "the test left a torch.distributed process group"
    assert not changed, f"the test left a changed environment: {', '.join(changed)}"


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """A server that speaks S3's protocol, with one bucket; tests take folders of their own."""
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TeacherSpec]:
    """A factory of teachers with weights on disk: `make_teacher(name, labels, **)`.

    By default a convnet of widths 4, 6, 8 for 1x16x16 pictures, random, its BatchNorm statistics
    and affine parameters too; the same name gives the same weights.
    """

    def make(
        name: str = "first",
        labels: Sequence[str] = ("a", "b", "c"),
        *,
        task: Task = "multi_label",
        widths: Sequence[int] = WIDTHS,
        channels: Literal[1, 3] = 1,
        size: int = 16,
        mean: Sequence[float] = (0.4,),
        std: Sequence[float] = (0.3,),
        seed: int | None = None,
    ) -> TeacherSpec:
        network = trained_convnet(
            channels=channels,
            labels=len(labels),
            widths=widths,
            seed=sum(name.encode()) if seed is None else seed,
        )
        path = tmp_path_factory.mktemp("teacher") / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        return TeacherSpec(
            name=name,
            source="builtin:convnet",
            weights=str(path),
            arguments={"widths": list(widths)},
            task=task,
            labels=list(labels),
            blocks=[f"block{depth}" for depth in range(1, len(widths) + 1)],
            input=InputSpec(channels=channels, size=size, mean=[*mean], std=[*std]),
        )

    return make


@pytest.fixture(scope="session")
def load_teacher() -> Callable[[TeacherSpec], Teacher]:
    """A factory of loaded teachers: `load_teacher(spec)`."""
    return lambda spec: Teacher(spec, "teachers.0", read_weights(spec, "teachers.0"))


@pytest.fixture(scope="session")
def make_copy() -> Callable[..., TargetNet]:
    """A factory of targets that are their teachers all over: `make_copy(teacher, ..., labels=...)`.

    The trunk is the first one's blocks, so the others must have the same.
    """

    def make(*teachers: Teacher, labels: Sequence[str] = ()) -> TargetNet:
        first = teachers[0].description
        known = dict.fromkeys(label for teacher in teachers for label in teacher.spec.labels)
        labels = labels or list(known)
        design = Architecture(
            dfka_dist=version(),
            labels=list(labels),
            input=first.spec.input,
            backbone="convnet",
            arguments=first.spec.arguments,
            branches=[
                BranchPoint(
                    teacher=teacher.spec.model_copy(update={"weights": None}),
                    depth=first.depth,
                    entry=first.depth,
                    shape=first.shapes[-1],
                    labels=[label for label in teacher.spec.labels if label in labels],
                )
                for teacher in teachers
            ],
        )
        own = LocalTeachers({teacher.spec.name: teacher for teacher in teachers})
        target = build_target(design, own)
        for block, stage in zip(target.trunk.blocks, teachers[0].chain.stages, strict=False):
            state = stage.state_dict()
            block.load_state_dict({key.partition(".")[2]: state[key] for key in state})
        return target.eval()

    return make


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """A factory of whole runs: `make_config(specs, training={"steps": 2}, ...)`, named "test"."""

    def make(teachers: Sequence[TeacherSpec], **sections: Any) -> RunConfig:
        run = {"name": "test"} | sections.pop("run", {})
        training = {"branch_steps": 0} | sections.pop("training", {})
        named = [teacher.model_dump() for teacher in teachers]
        return parse({"run": run, "teachers": named, "training": training, **sections})

    return make


def trained_convnet(
    *, channels: int = 1, labels: int = 3, widths: Sequence[int] = WIDTHS, seed: int = 0
) -> ConvNet:
    """A convnet in eval mode whose BatchNorm layers look as if it had been trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNet(channels=channels, labels=labels, widths=widths)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                nn.init.normal_(part.running_mean, 0.0, 0.3)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0.0, 0.3)
    return network.eval()


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
