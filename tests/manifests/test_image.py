"""The image: what is in it, and what it is made of. None can be built here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import reading
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = reading.ROOT / "cluster" / "Dockerfile"
CONSTRAINTS = reading.ROOT / "cluster" / "constraints.txt"


def test_the_image_has_what_an_upload_has_and_the_hook_of_its_pods() -> None:
    kept = _lines(reading.ROOT / ".dockerignore")

    assert kept[0] == "*"
    assert {"!dfka_dist", "!jobs", "!cluster/leave.py", "!pyproject.toml"} <= {*kept}
    for line in kept:
        if line.startswith("!"):
            assert (reading.ROOT / line[1:]).exists(), line


def test_the_image_is_built_in_stages_for_a_user_who_is_not_root() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")

    assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == [
        "${PYTHON_IMAGE} AS build",
        "${PYTHON_IMAGE} AS cpu",
        "cpu AS gpu",
        "${VARIANT}",
    ]
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000"]
    assert text.index("AS cpu") < text.index("USER 1000") < text.index("AS gpu")
    assert text.index("ARG VARIANT=cpu") < text.index("FROM")  # or the last stage has no name


def test_only_the_image_for_gpus_looks_for_a_driver() -> None:
    *others, last, _ = DOCKERFILE.read_text(encoding="utf-8").split("FROM ")

    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 PATH=$PATH:/usr/local/nvidia/bin" in last
    assert not [each for each in others if "NVIDIA_" in each or "LD_LIBRARY_PATH" in each]


def test_what_is_kept_out_of_the_image_is_not_in_it() -> None:
    assert reading.in_image("/app/cluster/leave.py") and reading.in_image("/app/jobs/tune.py")
    for path in ("cluster/runtime_env.yaml", "tests/conftest.py", "jobs/train.py"):
        assert not reading.in_image(f"/app/{path}"), path
    assert not reading.in_image("cluster/leave.py")


def test_what_the_image_copies_is_let_in() -> None:
    text, kept = DOCKERFILE.read_text(encoding="utf-8"), _lines(reading.ROOT / ".dockerignore")

    for sources in re.findall(r"^COPY ((?:[\w./]+ )+)\S+$", text, re.MULTILINE):
        for source in sources.split():
            assert source == "." or f"!{source}" in kept, source


def test_the_image_pins_all_that_the_package_asks_for() -> None:
    project = tomllib.loads((reading.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["demo"], *extras["hf"]]
    text = DOCKERFILE.read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in _lines(CONSTRAINTS))
    for name in ("torch", "ray"):
        version = re.search(rf"^ARG {name.upper()}_VERSION=(.+)$", text, re.MULTILINE)
        assert version is not None and name not in pinned, name
        pinned[name] = version[1]

    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pinned[name]), requirement
    assert '"torch==${TORCH_VERSION}"' in text
    assert '-c constraints.txt "ray[default,train,tune]==${RAY_VERSION}" ".[demo,hf]"' in text


def test_the_extension_that_the_image_builds_is_the_one_that_deepspeed_loads() -> None:
    # Read and not imported: DeepSpeed sets up its accelerator when it is.
    installed = importlib.util.find_spec("deepspeed")
    assert installed is not None and installed.origin is not None
    builder = Path(installed.origin).parent / "ops" / "op_builder" / "cpu" / "comm.py"
    named = re.search(
        r'class ShareMemCommBuilder.*?NAME = "(\w+)"', builder.read_text("utf-8"), re.DOTALL
    )
    assert named is not None

    text = DOCKERFILE.read_text(encoding="utf-8")
    assert f"/opt/torch_extensions/{named[1]}/{named[1]}.so" in text
    assert "ShareMemCommBuilder().load()" in text


def test_a_job_runs_from_what_the_image_copies_where_nothing_of_it_is_installed(
    copied: Path, libraries: Path
) -> None:
    env = {"PYTHONPATH": f"{copied}:{libraries}", "PATH": os.environ["PATH"]}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        # -S: what lies in site-packages to find a package that is installed for editing is not run.
        command = [sys.executable, "-S", *words]
        return subprocess.run(command, cwd=copied, env=env, capture_output=True, text=True)

    found = "import importlib.metadata as m, dfka_dist; print(dfka_dist.__file__); m.version('ray')"
    assert python("-c", found).stdout == f"{copied / 'dfka_dist' / '__init__.py'}\n"
    assert "PackageNotFoundError" in python("-c", f"{found}; m.version('dfka_dist')").stderr
    config = ("--config", "jobs/presets/digits.yaml")
    ran = python("jobs/amalgamate.py", *config, "--dry-run")
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `COPY .` would bring into the image."""
    folder = tmp_path_factory.mktemp("app")
    for line in _lines(reading.ROOT / ".dockerignore"):
        source, target = reading.ROOT / line[1:], folder / line[1:]
        if not line.startswith("!"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed but for this package."""
    folder = tmp_path_factory.mktemp("libraries")
    for place in {*map(Path, (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))}:
        for each in place.iterdir():
            if "dfka_dist" not in each.name:
                (folder / each.name).symlink_to(each)
    return folder


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
