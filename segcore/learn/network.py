"""The graph contract: 8-bit picture in, logits out; and what such a graph costs.

Exported models and the PyTorch reference share this wrapper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segcore.picture.preprocess import InputSpec


class DeployGraph(nn.Module):
    """Casts, transposes and normalises in the graph, so that no device has a second preprocessing.

    The cast comes first: TensorRT takes an 8-bit input only if its one consumer is a Cast.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255.0 * torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(spec.std).view(1, -1, 1, 1)))

    def forward(self, picture: Tensor) -> Tensor:
        """N×H×W×C uint8 → N×K×h×w float32 logits at the head's stride."""
        x = picture.to(torch.float32).permute(0, 3, 1, 2)  # N C H W
        return self.network(normalise(x, self.mean, self.scale))  # type: ignore[no-any-return]


def normaliser(spec: InputSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What `DeployGraph` does to a picture, for training images N×C×H×W, 0–1."""
    mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
    scale = 1 / torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
    return lambda image: normalise(image, mean, scale)


def normalise(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """(x − mean)·scale; one grey channel is repeated where the network takes three."""
    if x.shape[1] != mean.shape[1]:  # not always: an Expand that changes nothing would stay in every graph
        x = x.expand(-1, mean.shape[1], -1, -1)
    return (x - mean) * scale


def count_macs(network: nn.Module, spec: InputSpec) -> int:
    """Multiply-accumulates of one picture: convolutions, matrix products and attention, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    graph = DeployGraph(network, spec).to(next(network.parameters()).device).eval()
    picture = torch.zeros(1, *spec.size_px, spec.channels, dtype=torch.uint8, device=graph.mean.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(picture)
    return int(counter.get_total_flops()) // 2
