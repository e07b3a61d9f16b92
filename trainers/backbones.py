"""Frozen strong encoders: raw inputs -> the features a student head reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FourierEncoder(nn.Module):
    """Random Fourier features followed by one affine map, ``cos(x W + b) P + o`` (Rahimi & Recht 2007).

    Args:
        weights: ``frequencies`` [P, F], ``phases`` [F], ``projection`` [F, D], ``offset`` [D].
    """

    frequencies: Tensor
    phases: Tensor
    projection: Tensor
    offset: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in ("frequencies", "phases", "projection", "offset"):
            self.register_buffer(name, weights[name])

    def forward(self, x: Tensor) -> Tensor:
        """Raw inputs [n, ...] -> features [n, D]."""
        hidden = torch.cos(x.flatten(1) @ self.frequencies + self.phases)
        return hidden @ self.projection + self.offset


class Standardize(nn.Module):
    """``(x - shift) / scale`` per feature.

    Args:
        weights: ``shift`` [D] and ``scale`` [D].
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in ("shift", "scale"):
            self.register_buffer(name, weights[name])

    def forward(self, x: Tensor) -> Tensor:
        """Raw features [n, D] -> standardised [n, D]."""
        return (x - self.shift) / self.scale


def encoder(weights: Mapping[str, Tensor]) -> nn.Module:
    """The encoder that has exactly these weights.

    Raises:
        ValueError: no known encoder has them.
    """
    if not weights:
        return nn.Identity()
    if set(weights) == {"frequencies", "phases", "projection", "offset"}:
        return FourierEncoder(weights)
    if set(weights) == {"shift", "scale"}:
        return Standardize(weights)
    raise ValueError(f"no encoder has the weights {sorted(weights)}")
