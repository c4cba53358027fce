"""Adapters: small modules put to the layers of a frozen network, and where they go in an encoder's blocks.

They stand before a block, after a layer, or beside a layer. Each starts as nothing: what it is put to computes at first
bit for bit what it did.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from teacher.settings import Tune

ADAPTERS: tuple[Tune, ...] = ("adapter", "adapter-parallel", "adapter-channel-space")
"""Modules that stay in the network that a bundle holds; peft's updates are merged into the weights."""
PARALLEL_SCALE = 0.5
"""Of the bottleneck beside an MLP. Source: SAM-Adapter on FLARE22, after Wu et al., Medical SAM Adapter, 2023."""

Layer = TypeVar("Layer", nn.Linear, nn.ConvTranspose2d)


class Bottleneck(nn.Module):
    """Down, activation, up: … ×D → … ×D; 0 at first."""

    def __init__(self, features: int, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.down = nn.Linear(features, width)
        self.activation = activation()
        self.up = zeroed(nn.Linear(width, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))  # type: ignore[no-any-return]


class AdaptedBlock(nn.Module):
    """A block with an adapter before it: block(x + GELU(W_up GELU(W_down x))), x … ×D.

    Source: Xiong et al., SAM2-UNet, 2024; Li et al., Entropy 26(12):1059, 2024, place theirs there, too.
    """

    def __init__(self, block: nn.Module, features: int, width: int) -> None:
        super().__init__()
        self.block = block
        up = zeroed(nn.Linear(width, features))  # GELU(0) is 0
        # Not a Bottleneck: bundles of version 0.5 and before have these names.
        self.adapter = nn.Sequential(nn.Linear(features, width), nn.GELU(), up, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + self.adapter(x))  # type: ignore[no-any-return]


class AdapterAfter(nn.Module):
    """A layer whose output y, … ×D, becomes y + adapter(y). All inputs are the layer's."""

    def __init__(self, layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        y = self.layer(*inputs, **named)
        return y + self.adapter(y)  # type: ignore[no-any-return]


class AdapterBeside(nn.Module):
    """A layer of one input x, … ×D, in parallel with an adapter: layer(x) + scale · adapter(x)."""

    def __init__(self, layer: nn.Module, adapter: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * self.adapter(x)  # type: ignore[no-any-return]


class ChannelSpaceAdapter(nn.Module):
    """Weighs channels, then looks around in the map: N×H×W×D of a whole picture → N×H×W×D; 0 at first. Any H and W.

    Source: Cheng et al., SAM-Med2D, 2023. Theirs, as its code has it: global mean → bottleneck of a quarter of the
    channels → sigmoid, which weighs the channels; then a 3×3 convolution of stride 2, ReLU, a 4×4 transposed
    convolution of stride 2 and a second ReLU, both as wide as the features; added to its input and normalised; beside
    each block's MLP. What is different here, and why:

    * `width` is the bottleneck of both halves. Convolutions of all channels would have 57 million parameters in
      Hiera-tiny, which has 27 million itself.
    * The transposed convolution starts at 0, and neither a second ReLU (whose gradient at 0 is 0, so that nothing would
      ever be learnt) nor the input nor a norm follows it: the block then computes at first what it did.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(features, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, features, bias=False),
            nn.Sigmoid(),
        )
        self.space = nn.Sequential(
            nn.Conv2d(features, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            zeroed(nn.ConvTranspose2d(width, features, 4, stride=2, padding=1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = x * self.channel(x.mean(dim=(1, 2), keepdim=True))  # of N 1 1 D
        x = self.space(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # N D H W, and back
        return x[:, :height, :width]  # an odd size came back one larger


def add_adapters(encoder: nn.Module, kind: Tune, width: int) -> nn.Module:
    """Freezes the encoder and puts trainable adapters into every block with attention; in place.

    Args:
        encoder: Hiera, which has one list of blocks, or TinyViT, which has one a stage.
        kind: one of `ADAPTERS`.
        width: of their bottleneck.
    """
    encoder.requires_grad_(False)
    for module in list(encoder.modules()):
        blocks = module._modules.get("blocks")
        if isinstance(blocks, nn.ModuleList):
            adapted = (_with_adapter(b, kind, width) if hasattr(b, "attn") else b for b in blocks)
            module.blocks = nn.ModuleList(adapted)
    return encoder


def zeroed(layer: Layer) -> Layer:
    """A layer that gives 0; in place."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _with_adapter(block: Any, kind: Tune, width: int) -> nn.Module:
    if kind == "adapter":
        return AdaptedBlock(block, block.dim, width)
    features = block.dim_out  # attention widens the features where a stage begins
    if kind == "adapter-parallel":
        # Within windows, padding and all: a bottleneck works on single places, so that it makes no difference.
        block.attn = AdapterAfter(block.attn, Bottleneck(features, width))
        block.mlp = AdapterBeside(block.mlp, Bottleneck(features, width), PARALLEL_SCALE)
    else:
        # The MLP, unlike the attention, gets the map of the whole picture; Hiera's gets it normalised, TinyViT's after
        # the batch norm of its convolution.
        block.mlp = AdapterBeside(block.mlp, ChannelSpaceAdapter(features, width))
    return block  # type: ignore[no-any-return]
