"""SAM 2's weights, from Meta's files or the hub, into the parts of SAM 2 that a system uses."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segcore.command import log
from segcore.errors import InputError, need
from teacher.settings import TUNES, EncoderSize, TeacherSettings

NO_WEIGHTS = "no pretrained weights"
TRUNK = "image_encoder.trunk."


class _Checkpoint(NamedTuple):
    repository: str
    file: str


_PUBLISHED: dict[EncoderSize, _Checkpoint] = {
    "tiny": _Checkpoint("facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"),
    "small": _Checkpoint("facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt"),
    "base+": _Checkpoint("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt"),
    "large": _Checkpoint("facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt"),
}


def load_encoder_weights(encoder: nn.Module, weights: str, size: EncoderSize) -> str:
    """Loads SAM 2's weights into an encoder from `build_encoder`; see `load_sam2_weights`."""
    parts = nn.Module()  # the encoder where Meta's files have it
    parts.image_encoder = nn.Module()
    parts.image_encoder.trunk = encoder
    return load_sam2_weights(parts, weights, size)


def load_for_system(model: nn.Module, settings: TeacherSettings, *, frozen: Sequence[str]) -> str:
    """Loads the weights that the flags name, and refuses those that lack a part which the system leaves as it is.

    Args:
        model: see `load_sam2_weights`.
        settings: the flags.
        frozen: parts that must not stay random, as `check_frozen_parts` takes them; what the system trains as a
            whole is not among them.

    Raises:
        InputError: as `load_sam2_weights` and `check_frozen_parts` do.
    """
    loaded = _load_parts(model, str(settings.weights), settings.encoder)
    check_frozen_parts(settings, loaded.absent, frozen)
    return _describe_origin(loaded, str(settings.weights))


def check_frozen_parts(settings: TeacherSettings, absent: Sequence[str], frozen: Sequence[str]) -> None:
    """Checks that no part which stays frozen has random weights: it cannot be adapted. `--tune all` trains everything.

    Args:
        settings: the flags.
        absent: parts that the weights do not hold: "sam_mask_decoder", "image_encoder.neck", "no_mem_embed", …
        frozen: parts that the system leaves, or most of them, as they are.

    Raises:
        InputError: a frozen part is absent.
    """
    missing = [part for part in frozen if part in absent]
    if missing and settings.tuned != "all":
        otherwise = ", or add --tune all" if "all" in TUNES[settings.system] else ""
        raise InputError(
            f"--weights {settings.weights}: must hold {', '.join(missing)} for --system {settings.system}, which "
            f"leaves most of that as it is; give all of SAM 2.1, such as {_PUBLISHED[settings.encoder].repository}"
            + otherwise
        )


def load_sam2_weights(model: nn.Module, weights: str, size: EncoderSize) -> str:
    """Loads SAM 2's weights into a model whose parts have the names of Meta's files.

    A file may hold the encoder alone, as an encoder that was trained in house does: the other parts then keep their
    random weights, and that is said.

    Args:
        model: `Sam2ImageModel`, `SAM2Base`, …; what the file holds beside the model's parts is ignored.
        weights: a path (Meta's .pt, or .safetensors with the same names), a hub name, or "none".
        size: what the encoder was built as, for the message.

    Returns:
        Where the weights came from, for the manifest.

    Raises:
        InputError: no such file or model, no network, not a checkpoint, or of another model.
    """
    return _describe_origin(_load_parts(model, weights, size), weights)


class _WeightsOrigin(NamedTuple):
    origin: str
    absent: list[str]


def _load_parts(model: nn.Module, weights: str, size: EncoderSize) -> _WeightsOrigin:
    if weights == "none":
        return _WeightsOrigin(NO_WEIGHTS, [])
    path = _download_checkpoint(weights, size) if _is_hub_name(weights) else Path(weights)
    if not path.is_file():
        names = ", ".join(p.repository for p in _PUBLISHED.values())
        raise InputError(
            f"--weights {weights}: must be a .pt or .safetensors file, one of {names}, or none; no such file"
        )
    found, wanted = _read_tensors(path), model.state_dict()
    _check_kind(found, weights)
    parts = {_part_of(name) for name in wanted}
    absent = sorted(part for part in parts if not any(_part_of(name) == part for name in found))
    found = {name: tensor for name, tensor in found.items() if _part_of(name) in parts}
    wanted = {name: tensor for name, tensor in wanted.items() if _part_of(name) not in absent}
    _check_tensors(found, wanted, weights, size)
    model.load_state_dict(found, strict=False)
    origin = f"{weights} ({path.name})" if _is_hub_name(weights) else path.name
    return _WeightsOrigin(origin, absent)


def _describe_origin(loaded: _WeightsOrigin, weights: str) -> str:
    """The origin of a model's weights; what stays random is named there and on the terminal."""
    if not loaded.absent:
        return loaded.origin
    parts = ", ".join(loaded.absent)
    log(f"--weights {weights}: holds no {parts}: random weights there")
    return f"{loaded.origin}, without {parts}"


def _part_of(name: str) -> str:
    """ "image_encoder.trunk.blocks.0…" → "image_encoder.trunk", "sam_mask_decoder.…" → "sam_mask_decoder"."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "image_encoder" else words[0]


def _is_hub_name(weights: str) -> bool:
    return weights.startswith("facebook/") and not Path(weights).exists()


def _download_checkpoint(name: str, size: EncoderSize) -> Path:
    published = next((p for p in _PUBLISHED.values() if p.repository == name), None)
    if published is None:
        names = ", ".join(p.repository for p in _PUBLISHED.values())
        raise InputError(f"--weights {name}: must be one of {names}; got another name")
    if published != _PUBLISHED[size]:
        right = next(s for s, p in _PUBLISHED.items() if p == published)
        raise InputError(
            f"--weights {name}: must fit --encoder {size}, is for {right}; add --encoder {right}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise need("huggingface-hub", "teacher") from None
    try:
        return Path(hf_hub_download(published.repository, published.file))  # shows its own progress, caches
    except Exception as error:  # the hub raises many kinds: httpx's, its own, OSError
        raise InputError(
            f"--weights {name}: must be downloaded once, the hub cannot be reached ({type(error).__name__}); "
            f"fetch {published.file} on another machine and pass its path"
        ) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise InputError(
                f"--weights {path}: must be a safetensors file, cannot be read ({error})"
            ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"--weights {path}: must be a checkpoint that holds tensors only, cannot be read ({reason})"
        ) from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"--weights {path}: must hold a dictionary of tensors as Meta's SAM 2 files do, got something else"
        )
    return state


def _check_kind(found: dict[str, Tensor], weights: str) -> None:
    if any(name.startswith("image_encoder.blocks.") for name in found):
        raise InputError(
            f"--weights {weights}: must be of SAM 2, got SAM 1 (its encoder is a plain ViT); "
            "download SAM 2.1's, such as facebook/sam2.1-hiera-tiny"
        )
    if not any(name.startswith(TRUNK) for name in found):
        raise InputError(
            f"--weights {weights}: must hold tensors named {TRUNK}*, got none; is it a SAM 2 checkpoint?"
        )


def _check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], weights: str, size: str) -> None:
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape)
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        raise InputError(
            f"--weights {weights}: must be of SAM 2.1 Hiera {size}, got another model "
            f"({len(missing)} tensors missing, {len(extra)} unknown, {len(shapes)} of another shape, e.g. {example}); "
            f"set --encoder to the weights' size ({', '.join(get_args(EncoderSize))})"
        )
