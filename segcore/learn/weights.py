"""Writes weights so that a full disk is an OSError and leaves nothing half-written.

safetensors' and torch's own file writers raise errors of their own there, which look like a bug of ours.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn


def save_weights(path: Path, network: nn.Module) -> None:
    """Writes a network's state as safetensors."""
    # a clone in plain memory order: safetensors takes neither channels-last nor shared memory
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    _replace(path, save(state))


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes what a training needs to go on; read it with `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    _replace(path, buffer.getbuffer())


def _replace(path: Path, content: bytes | memoryview) -> None:
    """A reader sees the old file or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
