"""Frozen teachers that answer, and carry gradients back, wherever they live."""
