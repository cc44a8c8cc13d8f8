"""Data-free knowledge amalgamation, distributed: several frozen classifiers become one network.

Names are loaded when they are asked for: importing this package loads neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dfka_dist.version import __version__

if TYPE_CHECKING:
    from dfka_dist.config import LossWeights, RunConfig, TeacherSpec
    from dfka_dist.models.generator import GroupStackGenerator
    from dfka_dist.models.target import DualGenerator, TargetNet
    from dfka_dist.teachers.interface import Teachers
    from dfka_dist.teachers.local import LocalTeachers
    from dfka_dist.teachers.pool import TeacherPool
    from dfka_dist.teachers.served import ServedTeachers
    from dfka_dist.training.amalgamator import Amalgamator

_HOMES = {
    "Amalgamator": "dfka_dist.training.amalgamator",
    "DualGenerator": "dfka_dist.models.target",
    "GroupStackGenerator": "dfka_dist.models.generator",
    "LocalTeachers": "dfka_dist.teachers.local",
    "LossWeights": "dfka_dist.config",
    "RunConfig": "dfka_dist.config",
    "ServedTeachers": "dfka_dist.teachers.served",
    "TargetNet": "dfka_dist.models.target",
    "TeacherPool": "dfka_dist.teachers.pool",
    "TeacherSpec": "dfka_dist.config",
    "Teachers": "dfka_dist.teachers.interface",
}

__all__ = [
    "Amalgamator",
    "DualGenerator",
    "GroupStackGenerator",
    "LocalTeachers",
    "LossWeights",
    "RunConfig",
    "ServedTeachers",
    "TargetNet",
    "TeacherPool",
    "TeacherSpec",
    "Teachers",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dfka_dist' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
