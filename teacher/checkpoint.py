"""Writes the SAM 2 inside a teacher as a checkpoint in Meta's format: an encoder of one's own to adapt to other tasks.

`python -m teacher.checkpoint --bundle T --out encoder.pt`, then `python -m teacher.train --weights encoder.pt …`
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from segcore.bundle.folder import open_and_tell
from segcore.command import Settings, print_result, run_command
from segcore.errors import InputError
from segcore.outfolder import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

_PARTS = (
    "image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed", "no_mem_pos_enc", "memory_attention",
    "memory_encoder", "maskmem_tpos_enc", "obj_ptr_proj", "obj_ptr_tpos_proj", "no_obj_ptr", "no_obj_embed_spatial",
    "mask_downsample",
)  # fmt: skip


class CheckpointSettings(Settings):
    """Write a teacher's SAM 2 as Meta's files are: its encoder, and the parts for prompts and memory if it has them."""

    bundle: Path
    """A teacher that teacher.train wrote, without adapters: --tune all, lora, dora, rslora, ia3, bitfit or decoder."""
    out: Path
    """The file to write: .pt as Meta's, or .safetensors with the same names."""
    overwrite: bool = False
    """Replace the file."""


def main(settings: CheckpointSettings) -> None:
    """Runs the command; see the module."""
    import torch
    from safetensors.torch import save

    from teacher.system import load_teacher

    if settings.out.suffix not in (".pt", ".safetensors"):
        raise InputError(
            f"--out {settings.out}: must end in .pt or .safetensors, does not; give it that name"
        )
    if settings.out.exists() and not settings.overwrite:
        raise InputError(f"--out {settings.out}: must not exist yet, it does; add --overwrite to replace it")
    bundle = open_and_tell(settings.bundle)
    state = sam2_state(load_teacher(bundle), str(settings.bundle))
    if settings.out.suffix == ".safetensors":
        write_bytes(settings.out, save(state))
    else:
        buffer = io.BytesIO()
        torch.save({"model": state}, buffer)
        write_bytes(settings.out, buffer.getbuffer())
    parts = sorted({name.split(".")[0] for name in state})
    print_result(checkpoint=str(settings.out), encoder=bundle.manifest.architecture_settings["encoder"],
                 parameters=sum(t.numel() for t in state.values()), parts=parts)  # fmt: skip


def sam2_state(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a teacher's SAM 2 under Meta's names.

    Args:
        network: from `load_teacher`.
        name: of the bundle, for the message.

    Raises:
        InputError: the network has no part of SAM 2, or adapters in its encoder, which Meta's format has no place for.
    """
    from teacher.sam2_model import TRUNK

    found = dict[str, "Tensor"]()
    for module in network.modules():
        if hasattr(module, "no_mem_embed") or hasattr(module, "memory_attention"):
            found |= {n: t for n, t in module.state_dict().items() if n.split(".")[0] in _PARTS}
        elif hasattr(module, "encoder") and type(module.encoder).__name__ == "Hiera":
            found |= {TRUNK + n: t for n, t in module.encoder.state_dict().items()}  # type: ignore[union-attr,operator]
    if not found:
        raise InputError(
            f"--bundle {name}: must hold a SAM 2 encoder, has none; name a teacher of another --system"
        )
    if any("adapter" in n for n in found):
        raise InputError(
            f"--bundle {name}: must have an encoder without adapters, has some, and SAM 2's format has no place for "
            "them; train with --tune all, lora or bitfit"
        )
    return {n: t.detach().clone().contiguous() for n, t in found.items()}


if __name__ == "__main__":
    run_command(main, CheckpointSettings, "python -m teacher.checkpoint")
