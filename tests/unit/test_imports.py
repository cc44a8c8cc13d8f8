"""What importing costs, and that everything says what it is for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dfka_dist

PACKAGE = Path(dfka_dist.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("ray", "deepspeed", "transformers", "huggingface_hub")
LIGHT = [
    "dfka_dist",
    "dfka_dist.losses",
    "dfka_dist.config",
    "dfka_dist.commandline",
    "dfka_dist.progress",
    "dfka_dist.models.completion",
    "dfka_dist.models.huggingface",
    "dfka_dist.models.target",
    "dfka_dist.teachers.local",
    "dfka_dist.teachers.wire",
    "dfka_dist.teachers.micro",
    "dfka_dist.teachers.nodes",
    "dfka_dist.teachers.cutting",
    "dfka_dist.teachers.placement",
    "dfka_dist.archive",
    "dfka_dist.data",
    "dfka_dist.evaluation",
    "dfka_dist.report",
    "dfka_dist.scoring",
    "dfka_dist.training.streams",
    "dfka_dist.training.memory",
    "dfka_dist.training.branching",
    "dfka_dist.training.probe",
]


TESTS = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))


@pytest.fixture(scope="module")
def loaded_after() -> dict[str, list[str]]:
    """The heavy packages that a new interpreter has loaded after each import, one by one."""
    code = f"""
import importlib, json, sys
sys.path.append("..")  # what all tests share
found = {{}}
for name in {[*LIGHT, *TESTS]}:
    importlib.import_module(name)
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", [*LIGHT, *TESTS])
def test_importing_loads_neither_ray_nor_deepspeed_nor_hugging_face(
    loaded_after: dict[str, list[str]], module: str
) -> None:
    assert loaded_after[module] == []


def rooms(*modules: str) -> set[str]:
    return {f"{module}.py" for module in modules}


SEAMS = {
    "ray.train": rooms("elastic", "launch", "presence", "wires"),
    "ray.tune": rooms(*(f"tuning/{m}" for m in ("trial", "sampling", "listening", "sweep"))),
    "ray": rooms(
        "launch",
        "clusters",
        "elastic",
        "notices",
        "presence",
        "wires",
        "watching",
        *(f"tuning/{m}" for m in ("trial", "listening", "sweep")),
        *(f"teachers/{m}" for m in ("server", "served", "routing", "answers", "pool", "meters")),
        *(f"benchmarks/serving/{m}" for m in ("scale", "traffic")),
    ),
    "deepspeed": rooms("training/engines", "training/universal"),
    "transformers": rooms("models/huggingface"),
    "huggingface_hub": rooms("models/huggingface"),
    "pickle": rooms("models/sources", "training/checkpoint"),  # for the name of its error
}
"""Where each outside library may be imported; ruff's per-file ignores let in all or none."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def seam_of(module: str) -> str | None:
    """The outside library that a module is of: the longest name that fits."""
    own = [seam for seam in SEAMS if module == seam or module.startswith(f"{seam}.")]
    return max(own, key=len, default=None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_libraries_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    seams = {seam for module in imported(path) if (seam := seam_of(module))}
    assert {seam for seam in seams if place not in SEAMS[seam]} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Amalgamation'"):
        dfka_dist.Amalgamation  # noqa: B018


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
