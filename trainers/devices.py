"""Choosing a device when it is needed, never at import."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """``auto``: CUDA where this process sees a GPU, else the CPU.

    Raises:
        RuntimeError: ``cuda`` is asked for and there is none.
    """
    available = torch.cuda.is_available() if name != "cpu" else False
    if name == "cuda" and not available:
        raise RuntimeError("device: cuda was asked for, but this process sees no GPU; use device=auto or device=cpu")
    return torch.device("cuda" if available else "cpu")
