"""DeepSpeed's shards, read by another number of workers than wrote them."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal


def load(engine: Any, place: Path, tag: str, desk: Path) -> None:
    """Have parameters and moments that were saved, shared out over the workers that there are now;
    a collective. Buffers are not among them.

    Args:
        engine: DeepSpeed's.
        place: what its `save_checkpoint` wrote, and nobody else.
        desk: folder on this machine's disk, for what is made of it on the way.
    """
    with tempfile.TemporaryDirectory(dir=desk) as folder:
        _convert(place / tag, Path(folder) / tag)
        # Said anywhere else, DeepSpeed would take all later checkpoints for universal ones too.
        engine._config.load_universal_checkpoint = True
        try:
            engine.load_checkpoint(folder, tag=tag)
        finally:
            engine._config.load_universal_checkpoint = False


def _convert(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    wanted = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (  # it talks, and draws bars
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(wanted)
