"""An adapter that weighs channels and then looks around in the map.

Source: Cheng et al., SAM-Med2D, 2023. Theirs, as its code has it: global mean → bottleneck of a quarter of the
channels → sigmoid, which weighs the channels; then a 3×3 convolution of stride 2, ReLU, a 4×4 transposed convolution of
stride 2 and a second ReLU, both as wide as the features; added to its input and normalised; beside each block's MLP.
What is different here, and why:

* `width` is the bottleneck of both halves. Convolutions of all channels would have 57 million parameters in
  Hiera-tiny, which has 27 million itself.
* The transposed convolution starts at 0, and neither a second ReLU (whose gradient at 0 is 0, so that nothing would
  ever be learnt) nor the input nor a norm follows it: the block then computes at first what it did.
"""

from __future__ import annotations

from torch import Tensor, nn

from teacher.tuning.bottleneck import zeroed


class ChannelSpaceAdapter(nn.Module):
    """N×H×W×D features of a whole picture, channels last → N×H×W×D; 0 at first. Any H and W."""

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
        x = x * self.channel(x.mean(dim=(1, 2), keepdim=True))
        x = self.space(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x[:, :height, :width]  # an odd size came back one larger
