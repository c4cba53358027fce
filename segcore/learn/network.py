"""A network around its weights: the graph contract (8-bit picture in, logits out), its cost, and its files.

Exported models and the PyTorch reference share one wrapper, `DeployGraph`. Weights lie in bundles as safetensors; a
pickle is never executed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segcore.bundle.folder import Bundle
from segcore.errors import InputError, reading
from segcore.outfolder import write_bytes
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
        self.channels = len(spec.mean)  # of the network's input
        mean, std = spec.mean, spec.std
        if spec.channels == 1 and len(set(mean)) == len(set(std)) == 1:
            # The grey channel is repeated after the arithmetic, not before: OpenVINO 2026.4.1 takes a subtraction of
            # zeros out of a graph, and with it the repetition, so that the first layer is given one channel.
            mean, std = mean[:1], std[:1]
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(std).view(1, -1, 1, 1)))

    def forward(self, picture: Tensor) -> Tensor:
        """N×H×W×C uint8 → N×K×h×w float32 logits at the head's stride."""
        x = normalise(picture.to(torch.float32).permute(0, 3, 1, 2), self.mean, self.scale)  # N C H W
        if x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        return self.network(x)  # type: ignore[no-any-return]


def normaliser(spec: InputSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What `DeployGraph` does to a picture, for training images N×C×H×W, 0–1."""
    mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
    scale = 1 / torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
    return lambda image: normalise(image, mean, scale)


def normalise_pictures(pictures: Tensor, spec: InputSpec) -> Tensor:
    """What a network inside a `DeployGraph` is given: N×H×W×C uint8 → N×C×H×W float32, on the same device."""
    given: Tensor = DeployGraph(nn.Identity(), spec).to(pictures.device)(pictures)
    return given


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


def check_finite(network: nn.Module, name: str, remedy: str) -> None:
    """Refuses a network with a weight that is no number: it would give a mask, and nothing would look wrong.

    Raises:
        InputError: naming the first such tensor, and what to do.
    """
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"{name}: must have finite weights, has {bad} of {tensor.numel()} NaN or infinite in {key}; {remedy}"
            )


def save_weights(path: Path, network: nn.Module) -> None:
    """Writes a network's state as safetensors."""
    # A clone in plain memory order: safetensors takes neither channels-last nor shared memory.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    # By our own writer, to which a full disk is an OSError: those of safetensors and torch raise errors that look like
    # a bug of ours.
    write_bytes(path, save(state), durable=True)


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes what a training needs to go on; read it with `torch.load(path, weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer(), durable=True)


def check_torch_bundle(bundle: Bundle, kind: str) -> None:
    """Checks that a bundle holds a network of this kind that torch can open.

    Raises:
        InputError: a teacher where a student is wanted or the other way round, or an exported bundle.
    """
    found = bundle.manifest
    if found.kind != kind or found.format != "torch":
        raise InputError(
            f"bundle {bundle.folder}: must be a {kind} in torch format, got a {found.kind} in {found.format} format; "
            "name the folder that its training wrote"
        )


def load_weights(network: nn.Module, bundle: Bundle) -> nn.Module:
    """Loads a torch bundle's weights into the network built for it, and puts it into eval mode.

    Raises:
        InputError: they are damaged or those of another network, or some are NaN or infinite.
    """
    file = bundle.manifest.model_file
    with reading(
        f"bundle {bundle.folder}", f"one whose {file} holds its network", remedy="copy the bundle again"
    ):
        network.load_state_dict(load_file(bundle.model_path))
    check_finite(network, f"bundle {bundle.folder}", "train it again")
    return network.eval()
