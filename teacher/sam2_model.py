"""SAM 2 as Meta's sam2 package builds it, with random weights. The only file that imports sam2.

`import sam2` initialises Hydra for the whole process, so it happens inside the functions, and the model's settings are
read from sam2's own YAML without Hydra.

One part is replaced: sam2's LayerNorm over the channels of a map is made of seven operators, and squares its
input outside any normalisation, which 16 bits do not hold (NVIDIA/TensorRT#3657, #4723).

Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024; Ryali et al., Hiera, ICML 2023.
"""

from __future__ import annotations

import re
from importlib import import_module, resources
from typing import Any

import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from segcore.errors import need
from teacher.settings import EncoderSize

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAM2_MEAN_STD = {1: IMAGENET_MEAN_STD, 3: IMAGENET_MEAN_STD}
"""What SAM 2's encoder was trained with, for grey pictures too."""
_CONFIGS: dict[EncoderSize, str] = {
    "tiny": "sam2.1_hiera_t.yaml",
    "small": "sam2.1_hiera_s.yaml",
    "base+": "sam2.1_hiera_b+.yaml",
    "large": "sam2.1_hiera_l.yaml",
}


def build_encoder(size: EncoderSize) -> nn.Module:
    """Hiera, SAM 2.1's image encoder without its neck.

    N×3×H×W, H and W multiples of 32 → four feature maps at strides 4, 8, 16, 32; `channel_list` gives their channels,
    deepest first.

    Raises:
        InputError: the sam2 package is not installed.
    """
    encoder: nn.Module = _instantiate(_read_config(size)["image_encoder"]["trunk"])
    return encoder


def build_sam2(size: EncoderSize, image_px: int) -> Any:
    """All of SAM 2.1: sam2's `SAM2Base`, for square pictures of `image_px`, a multiple of 32.

    Its parts have the names of Meta's files: `image_encoder` (with `trunk` and `neck`), `sam_prompt_encoder`,
    `sam_mask_decoder`, `memory_attention`, `memory_encoder` and some of its own parameters.

    Raises:
        InputError: the sam2 package is not installed.
    """
    config = _read_config(size)
    config["image_size"] = image_px
    for attention in ("self_attention", "cross_attention"):  # rotary positions of a stride-16 map
        config["memory_attention"]["layer"][attention]["feat_sizes"] = [image_px // 16, image_px // 16]
    sam2 = _instantiate(config)
    join_channel_norms(sam2)
    return sam2


def _read_config(size: EncoderSize) -> dict[str, Any]:
    try:
        text = resources.files("sam2").joinpath(f"configs/sam2.1/{_CONFIGS[size]}").read_text()
    except ModuleNotFoundError as error:
        if error.name != "sam2":
            raise
        raise need("sam2", "teacher") from None
    return dict(yaml.safe_load(text)["model"])


def _instantiate(config: Any) -> Any:
    """What Hydra would build: a mapping with `_target_` is a call of that class of sam2."""
    if isinstance(config, list):
        return [_instantiate(one) for one in config]
    if isinstance(config, str) and re.fullmatch(r"\d+e-?\d+", config):
        return float(config)  # 1e-6 is a number in YAML 1.2, which Hydra reads, and text in PyYAML's 1.1
    if not isinstance(config, dict):
        return config
    built = {key: _instantiate(value) for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return built
    module, _, name = config["_target_"].rpartition(".")
    assert module.startswith("sam2."), module
    return getattr(import_module(module), name)(**built)


class ChannelNorm(nn.Module):
    """N×C×H×W, normalised over C at each pixel, by one operator.

    Shares the parameters of the `LayerNorm2d` that it replaces.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)  # N H W C
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def join_channel_norms(network: nn.Module) -> None:
    """Replaces, in place, every `LayerNorm2d` of sam2; the names of its parameters stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LayerNorm2d":
                setattr(module, name, ChannelNorm(child))
