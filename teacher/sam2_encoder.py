"""SAM 2's Hiera image encoder, from the sam2 package, and its weights. The only file that imports sam2.

`import sam2` initialises Hydra for the whole process, so it happens inside `build_encoder`, and the model's settings
are read from sam2's own YAML without Hydra.
"""

from __future__ import annotations

import pickle
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from segcore.errors import InputError, need

EncoderSize = Literal["tiny", "small", "base+", "large"]
IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what SAM 2's encoder was trained with
NO_WEIGHTS = "no pretrained weights"
_PREFIX = "image_encoder.trunk."


class _Published(NamedTuple):
    config: str
    repository: str
    file: str


_PUBLISHED: dict[str, _Published] = {
    "tiny": _Published("sam2.1_hiera_t.yaml", "facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"),
    "small": _Published("sam2.1_hiera_s.yaml", "facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt"),
    "base+": _Published(
        "sam2.1_hiera_b+.yaml", "facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt"
    ),
    "large": _Published("sam2.1_hiera_l.yaml", "facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt"),
}


def build_encoder(size: EncoderSize) -> nn.Module:
    """Hiera as SAM 2.1 configures it, with random weights.

    N×3×H×W, H and W multiples of 32 → four feature maps at strides 4, 8, 16, 32; `channel_list` gives their channels,
    deepest first.

    Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024; Ryali et al., Hiera, ICML 2023.

    Raises:
        InputError: the sam2 package is not installed.
    """
    try:
        from sam2.modeling.backbones.hieradet import Hiera
    except ModuleNotFoundError as error:
        if error.name != "sam2":
            raise
        raise need("sam2", "teacher") from None
    text = resources.files("sam2").joinpath(f"configs/sam2.1/{_PUBLISHED[size].config}").read_text()
    settings: dict[str, Any] = dict(yaml.safe_load(text)["model"]["image_encoder"]["trunk"])
    settings.pop("_target_")
    encoder: nn.Module = Hiera(**settings)
    return encoder


def load_encoder_weights(encoder: nn.Module, weights: str, size: EncoderSize) -> str:
    """Loads SAM 2's weights into the encoder.

    Args:
        encoder: from `build_encoder`.
        weights: a path (Meta's .pt, or .safetensors with the same names), a hub name, or "none".
        size: what the encoder was built as, for the message.

    Returns:
        Where the weights came from, for the manifest.

    Raises:
        InputError: no such file or model, no network, not a checkpoint, or of another encoder.
    """
    if weights == "none":
        return NO_WEIGHTS
    path = _download(weights, size) if _is_hub_name(weights) else Path(weights)
    if not path.is_file():
        names = ", ".join(p.repository for p in _PUBLISHED.values())
        raise InputError(
            f"--weights {weights}: must be a .pt or .safetensors file, one of {names}, or none; no such file"
        )
    found = {k.removeprefix(_PREFIX): v for k, v in _read(path).items() if k.startswith(_PREFIX)}
    _check(found, encoder.state_dict(), weights, size)
    encoder.load_state_dict(found)
    return f"{weights} ({path.name})" if _is_hub_name(weights) else path.name


def _is_hub_name(weights: str) -> bool:
    return weights.startswith("facebook/") and not Path(weights).exists()


def _download(name: str, size: EncoderSize) -> Path:
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


def _read(path: Path) -> dict[str, Tensor]:
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


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], weights: str, size: str) -> None:
    if not found:
        raise InputError(
            f"--weights {weights}: must hold tensors named {_PREFIX}*, got none; is it a SAM 2 checkpoint?"
        )
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape)
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        raise InputError(
            f"--weights {weights}: must be of SAM 2.1 Hiera {size}, got another encoder "
            f"({len(missing)} tensors missing, {len(extra)} unknown, {len(shapes)} of another shape, e.g. {example}); "
            f"set --encoder to the weights' size ({', '.join(get_args(EncoderSize))})"
        )
