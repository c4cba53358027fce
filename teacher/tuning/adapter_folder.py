"""What was trained of an encoder, in a folder of its own: a few megabytes beside weights that anyone can download.

peft's updates are in peft's own format, for `peft.PeftModel.from_pretrained`; adapters and biases have the same two
files, of which the first is ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from segcore.errors import InputError, reading
from segcore.outfolder import write_text
from segcore.text import read_json
from teacher.tuning.adapters import ADAPTERS, add_adapters
from teacher.tuning.peft_kinds import PEFT_KINDS, load_peft, merge_peft, other_encoder, save_peft
from teacher.tuning.qkv_split import fuse_queries_keys_values, split_queries_keys_values
from teacher.tuning.tune import Tuning, train_biases

_WIDEST = 4096
_COPY = "copy the bundle's adapter/ again"
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
        return fuse_queries_keys_values(merge_peft(load_peft(encoder, folder)))
    if config.get("kind") == "bitfit":
        train_biases(encoder)
    elif config.get("kind") in ADAPTERS:
        width = config.get("width")
        if not isinstance(width, int) or not 1 <= width <= _WIDEST:
            raise InputError(f"{folder}: must have a width of 1 to {_WIDEST} in {CONFIG}, got {width!r}")
        add_adapters(encoder, config["kind"], width)
    else:
        raise InputError(
            f"{folder}: must be of a kind that is known, got {config.get('kind')}; update sam2edge"
        )
    wanted = {name: p.shape for name, p in encoder.named_parameters() if p.requires_grad}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise other_encoder(folder)
    encoder.load_state_dict(tensors, strict=False)
    return encoder


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder}: must be an adapter folder with {CONFIG}, got none; give a bundle's adapter/"
        )
    config = read_json(folder / CONFIG, str(folder / CONFIG), remedy=_COPY)
    if not isinstance(config, dict):
        raise InputError(
            f"{folder / CONFIG}: must hold names and values, got {type(config).__name__}; {_COPY}"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Any]:
    if not (folder / TENSORS).is_file():
        raise InputError(f"{folder}: must hold {TENSORS}, does not; {_COPY}")
    with reading(str(folder / TENSORS), "safetensors", remedy=_COPY):
        return load_file(folder / TENSORS)
