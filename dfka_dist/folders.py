"""Whether a folder can be made and written, as far as that can be seen without writing."""

from __future__ import annotations

import os
from pathlib import Path


def nearest(folder: Path) -> Path:
    """The folder, or what is above it and there."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def is_writable(folder: Path) -> bool:
    """Whether files could be written to the folder, or to the nearest one in which it can be
    made."""
    above = nearest(folder)
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)
