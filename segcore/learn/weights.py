"""Writes and reads weights: safetensors in bundles, never a pickle.

A full disk is an OSError here: safetensors' and torch's own file writers raise errors that look like a bug of ours.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from segcore.bundle.folder import Bundle
from segcore.errors import InputError
from segcore.outfolder import write_bytes


def save_weights(path: Path, network: nn.Module) -> None:
    """Writes a network's state as safetensors."""
    # a clone in plain memory order: safetensors takes neither channels-last nor shared memory
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    write_bytes(path, save(state))


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes what a training needs to go on; read it with `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer())


def check_torch_bundle(bundle: Bundle, kind: str) -> None:
    """Checks that a bundle holds a network of this kind that torch can open.

    Raises:
        InputError: a teacher where a student is wanted or the other way round, or an exported bundle.
    """
    found = bundle.manifest
    if found.kind != kind or found.format != "torch":
        raise InputError(
            f"bundle {bundle.folder}: must be a {kind} in torch format, got a {found.kind} in {found.format} format; "
            "name the folder that its training wrote"
        )


def load_weights(network: nn.Module, bundle: Bundle) -> nn.Module:
    """Loads a torch bundle's weights into the network built for it, and puts it into eval mode."""
    network.load_state_dict(load_file(bundle.model_path))
    return network.eval()
