"""Kinds of values that may stand in a configuration, and what is refused of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PRESETS = Path(__file__).resolve().parents[2] / "jobs" / "presets"
"""Where `preset:` names are looked up: beside the jobs."""

Label = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) is int else v), Field(min_length=1)
]


def _matching(pattern: str, remedy: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value[:60]!r} does not fit || {remedy}")
        return value

    return AfterValidator(check)


Name = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}",
        "at most 60 letters, digits, _ and -, no other first than a letter or digit",
    ),
]
Source = Annotated[
    str,
    _matching(
        r"builtin:\w+|hf:.+|[A-Za-z_][\w.]*:[A-Za-z_]\w*",
        "builtin:NAME, hf:FOLDER, hf:HUB_ID or package.module:callable",
    ),
]
ImageSource = Annotated[
    str,
    _matching(
        r"noise|digits|(archive|parquet|idx|folder):.+",
        "noise, digits, archive:URI, parquet:URI, idx:FOLDER or folder:FOLDER",
    ),
]
DataSource = Annotated[
    str,
    _matching(
        r"digits|(parquet|idx|folder):.+", "digits, parquet:URI, idx:FOLDER or folder:FOLDER"
    ),
]
Weight = Annotated[float, Field(ge=0, le=3e38, allow_inf_nan=False)]
"""As far as 32 bits go."""
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31)]
MaybeNone = Annotated[int, Field(ge=0, le=2**31)]
Few = Annotated[int, Field(ge=1, le=65_536)]
"""Of what takes place or a process each."""
Cpus = Annotated[float, Field(gt=0, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Task = Literal["single_label", "multi_label"]
Precision = Literal["fp32", "bf16"]


class Node(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, numbers not made from strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
