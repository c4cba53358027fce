"""LightUNet: a U-Net whose width is the only knob.

Source: Li et al., Adapting SAM2 Model from Natural Images for Tooth Segmentation in Dental Panoramic X-Ray Images,
Entropy 26(12):1059, 2024: "the same architecture as U-Net" with 0.49 M parameters, which base width 8 gives.
Ronneberger et al., U-Net, MICCAI 2015 (here with padding and batch normalisation, so sizes match).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segcore.bundle import Bundle
from segcore.learn.blocks import double_conv
from segcore.learn.weights import check_torch_bundle, load_weights

STRIDE = 16
GREY_MEAN_STD = ((0.5,), (0.25,))
RGB_MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class UNet(nn.Module):
    """Five levels of base, 2·base … 16·base channels; 2×2 transposed convolutions up; logits at full resolution."""

    def __init__(self, inputs: int, outputs: int, base: int) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(5)]
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip([inputs, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (16b, 8b) … (2b, b)
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(double_conv(a, b) for a, b in pairs)
        self.head = nn.Conv2d(base, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W normalised, H and W divisible by 16 → logits N×K×H×W."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


def build_unet(*, channels: int, outputs: int, base: int) -> UNet:
    """LightUNet is base 8 (487,145 parameters for one grey channel and one class); base 64 is the classic U-Net."""
    return UNet(channels, outputs, base)


def load_student(bundle: Bundle) -> nn.Module:
    """Builds the network of a torch bundle and loads its weights; in eval mode.

    Raises:
        InputError: not a student in torch format.
    """
    check_torch_bundle(bundle, "student")
    manifest = bundle.manifest
    base: int = manifest.architecture_settings["base"]
    network = build_unet(channels=manifest.input.channels, outputs=manifest.output.channels, base=base)
    return load_weights(network, bundle)
