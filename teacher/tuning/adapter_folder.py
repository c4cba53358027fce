"""What was trained of an encoder, in a folder of its own: a few megabytes beside weights that anyone can download.

peft's updates are in peft's own format, for `peft.PeftModel.from_pretrained`; adapters and biases have the same two
files, of which the first is ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from segcore.errors import InputError
from segcore.outfolder import write_text
from teacher.tuning.adapters import ADAPTERS, add_adapters
from teacher.tuning.peft_kinds import PEFT_KINDS, load_peft, merge_peft, save_peft
from teacher.tuning.qkv_split import fuse_queries_keys_values, split_queries_keys_values
from teacher.tuning.tune import Tuning, train_biases

CONFIG, TENSORS, NOTE = "adapter_config.json", "adapter_model.safetensors", "README.md"

_NOTE = """\
# What was trained of the encoder

`{kind}`, for the encoder that the bundle around this folder names, with the weights that its manifest names.

    from teacher.tuning.adapter_folder import load_adapters

    encoder = load_adapters(encoder, Path("adapter"))  # an encoder of `teacher.encoder.build_encoder`

The bundle's own weights have it already.
"""
_NOTE_PEFT = """
It is in peft's format: `peft.PeftModel.from_pretrained(encoder, "adapter")` opens it, too.
"""
_NOTE_SPLIT = """
Before that, `teacher.tuning.qkv_split.split_queries_keys_values(encoder)` has to give queries, keys and values layers
of their own, because the encoder has one layer for the three.
"""


def save_adapters(encoder: nn.Module, tuning: Tuning, folder: Path) -> None:
    """Writes what was trained of an encoder, before it is merged; nothing where that is all of it, or none.

    Args:
        encoder: from `tune_encoder`.
        tuning: as it was given there.
        folder: new, or empty.
    """
    if tuning.kind in ("decoder", "all"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    note = _NOTE.format(kind=tuning.kind)
    if tuning.kind in PEFT_KINDS:
        save_peft(encoder, folder)
        note += _NOTE_PEFT + (_NOTE_SPLIT if tuning.splits else "")
    else:
        config = {"kind": tuning.kind, "width": tuning.width if tuning.kind in ADAPTERS else None}
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        trained = {name: p.detach() for name, p in encoder.named_parameters() if p.requires_grad}
        trained = {name: p.cpu().contiguous() for name, p in trained.items()}  # training is channels-last
        save_file(trained, folder / TENSORS, metadata={"format": "pt"})
    write_text(folder / NOTE, note)


def load_adapters(encoder: nn.Module, folder: Path) -> nn.Module:
    """An encoder as it was when `save_adapters` wrote the folder, merged where peft made the updates. In place.

    Args:
        encoder: as it was before its tuning.
        folder: from `save_adapters`.

    Raises:
        InputError: not such a folder, one for another encoder, or peft is needed and not installed.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    if "peft_type" in config:
        if any(".qkv.value." in name for name in tensors):
            split_queries_keys_values(encoder)
        try:
            opened = load_peft(encoder, folder)
        except ValueError:  # peft's, too, where no layer has a name that it looks for
            raise _other_encoder(folder) from None
        return fuse_queries_keys_values(merge_peft(opened))
    if config.get("kind") == "bitfit":
        train_biases(encoder)
    elif config.get("kind") in ADAPTERS:
        add_adapters(encoder, config["kind"], config["width"])
    else:
        raise InputError(
            f"{folder}: must be of a kind that is known, got {config.get('kind')}; update sam2edge"
        )
    wanted = {name: p.shape for name, p in encoder.named_parameters() if p.requires_grad}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise _other_encoder(folder)
    encoder.load_state_dict(tensors, strict=False)
    return encoder


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise InputError(
            f"{folder}: must be an adapter folder with {CONFIG}, got none; give a bundle's adapter/"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Any]:
    try:
        return load_file(folder / TENSORS)
    except (OSError, SafetensorError):
        raise InputError(
            f"{folder}: must hold {TENSORS}, cannot be read; copy the bundle's adapter/ again"
        ) from None


def _other_encoder(folder: Path) -> InputError:
    return InputError(
        f"{folder}: must be for an encoder of this size, got tensors of another; build the encoder that the bundle's "
        "manifest names"
    )
