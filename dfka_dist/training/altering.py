"""Images altered a little, differentiably, by random numbers that are given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MOVES = 4
"""Random numbers that moving an image takes."""
GRID = 4
"""Points along each side of a random map, between which it is smooth."""
MIXES = 2 + GRID**2
"""Random numbers that mixing an image with another takes."""


def mixed(images: Tensor, others: Tensor, chance: Tensor, share: float) -> Tensor:
    """A share of images (N, C, H, W) mixed with others: half of these by one weight for the whole
    picture, half by a smooth random map.

    Args:
        chance: (N, MIXES), uniform in (0, 1).
    """
    grid = chance[:, 2:].reshape(-1, 1, GRID, GRID)
    size = images.shape[2:]
    field = functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    kind, even = chance[:, :1, None, None], chance[:, 1:2, None, None]
    smooth = (8 * (field - 0.5) + 2 * even - 1).sigmoid()
    own = torch.where(kind < share / 2, even, torch.where(kind < share, smooth, 1.0))
    return own * images + (1 - own) * others


def moved(images: Tensor, chance: Tensor, most: float) -> Tensor:
    """Images (N, C, H, W) shifted, turned and scaled, their edges drawn out.

    Args:
        chance: (N, MOVES), uniform in (0, 1).
        most: of the shift in halves of the picture, of the turn in radians, and of the change of
            scale.
    """
    across, down, turn, scale = (most * (2 * chance - 1)).unbind(1)
    cosine, sine = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
