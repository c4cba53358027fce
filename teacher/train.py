"""Trains a teacher: SAM 2's encoder, adapted with few parameters, under a U-Net decoder.

`python -m teacher.train --data D --weights facebook/sam2.1-hiera-tiny --out O`
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from segcore.command import log, print_result, run_command
from segcore.dataset import Dataset, open_dataset
from segcore.errors import InputError
from segcore.labelled_share import training_cases
from segcore.learn.settings import TrainSettings
from segcore.outfolder import out_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from segcore.learn.augment import Sample
    from segcore.preprocess import InputSpec
    from teacher.network import S2AgScUNet


class TeacherSettings(TrainSettings):
    """Train a SAM 2 teacher (S2AgScUNet)."""

    weights: str
    """SAM 2.1's weights: a .pt or .safetensors file, a hub name such as facebook/sam2.1-hiera-tiny, or none."""
    encoder: Literal["tiny", "small", "base+", "large"] = "tiny"
    """Size of SAM 2.1's Hiera encoder."""
    tune: Literal["lora", "adapter", "decoder", "all"] = "lora"
    """What of the encoder is trained beside the decoder: low-rank updates, adapters, nothing, or everything."""
    lora_rank: int = Field(4, ge=1)
    """Rank of the LoRA updates."""
    adapter_width: int = Field(32, ge=1)
    """Width of the adapters' bottleneck."""


def main(settings: TeacherSettings) -> None:
    """Runs the stage; see the module."""
    if settings.weights == "none" and settings.tune != "all":
        raise InputError(
            f"--weights none: must have weights for --tune {settings.tune}, which leaves the encoder as it is; "
            "give SAM 2.1's weights, or add --tune all to train everything from random weights"
        )
    dataset = open_dataset(settings.data, seed=settings.split_seed)
    recipe = {**settings.recipe(), "data_sha256": dataset.sha256}
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        dice, trained, total = _train(settings, dataset, folder)
    log(f"wrote {settings.out}")
    print_result(bundle=str(settings.out), dice_val=dice, trained_parameters=trained, parameters=total)


def _train(settings: TeacherSettings, dataset: Dataset, folder: Path) -> tuple[float, int, int]:
    import torch

    from segcore.learn.augment import Augmentation
    from segcore.learn.evaluate import Validator
    from segcore.learn.loader import TrainingSet, training_input
    from segcore.learn.loop import fit, open_accelerator
    from segcore.learn.seal import seal_trained
    from segcore.preprocess import output_spec
    from teacher.network import STRIDE, FinestHead, deployed
    from teacher.sam2_encoder import IMAGENET_MEAN_STD

    split = training_cases(
        dataset, labelled_share=settings.labelled_share, seed=settings.split_seed, limit=settings.limit
    )
    cases = [case for case in split if case.labelled]
    held = dataset.split("val", limit=settings.limit and max(1, settings.limit // 3))
    size = (settings.size, settings.size)
    mean_std = {1: IMAGENET_MEAN_STD, 3: IMAGENET_MEAN_STD}
    spec = training_input(cases, size, mean_std, window=settings.window)
    output = output_spec(dataset.classes, stride=STRIDE)
    torch.manual_seed(settings.seed)
    network, pretrained = build_teacher(settings, output.channels)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    augment = Augmentation(size, with_soft=False, flip=settings.flip)
    data = TrainingSet(cases, spec, classes=len(dataset.classes), seed=settings.seed, augment=augment)
    validator = Validator(held, spec, output, len(dataset.classes), batch=settings.batch_size)
    accelerator = open_accelerator(settings)
    log(f"S2AgScUNet on Hiera {settings.encoder}, {settings.tune}: {trained:,} of {total:,} parameters are trained; "
        f"{pretrained}; {len(cases)} training and {len(held)} validation images; {accelerator.device}")  # fmt: skip
    fit(
        network,
        data,
        loss_of=_loss(spec, accelerator.device),
        validate=lambda n: validator.dice(FinestHead(n)),
        settings=settings,
        folder=folder,
        accelerator=accelerator,
    )
    dice = 0.0
    if accelerator.is_main_process:
        manifest = seal_trained(
            folder,
            deployed(copy.deepcopy(network), settings.tune),
            kind="teacher",
            architecture="s2agscunet",
            architecture_settings={
                "encoder": settings.encoder,
                "adapter_width": settings.adapter_width if settings.tune == "adapter" else None,
            },
            name=f"S2AgScUNet {settings.encoder}{settings.label_note}",
            pretrained=pretrained,
            trained_parameters=trained,
            dataset=dataset,
            validator=validator,
            settings=settings,
        )
        dice = manifest.metric("dice_mean", "val") or 0.0
    accelerator.wait_for_everyone()
    return dice, trained, total


def build_teacher(settings: TeacherSettings, outputs: int) -> tuple[S2AgScUNet, str]:
    """The network with its weights loaded and frozen as `--tune` says, and where the weights came from."""
    from teacher.adapter import add_adapters
    from teacher.lora import add_lora
    from teacher.network import build_s2agscunet
    from teacher.sam2_encoder import load_encoder_weights

    network = build_s2agscunet(encoder=settings.encoder, outputs=outputs)
    pretrained = load_encoder_weights(network.encoder, settings.weights, settings.encoder)
    if settings.tune == "lora":
        network.encoder = add_lora(network.encoder, settings.lora_rank)
    elif settings.tune == "adapter":
        add_adapters(network.encoder, settings.adapter_width)
    elif settings.tune == "decoder":
        network.encoder.requires_grad_(False)
    return network, pretrained


def _loss(spec: InputSpec, device: torch.device) -> Callable[[nn.Module, Sample], Tensor]:
    import torch
    import torch.nn.functional as F

    from segcore.learn.deploy import normaliser
    from segcore.learn.losses import segmentation_loss

    normalised = normaliser(spec, device)

    def loss(network: nn.Module, batch: Sample) -> Tensor:
        """Deep supervision: the loss of each head, upsampled to the mask, summed."""
        target = batch["mask"]
        total = torch.zeros((), device=device)
        for logits in network(normalised(batch["image"])):
            full = F.interpolate(logits.float(), target.shape[1:], mode="bilinear", align_corners=False)
            total = total + segmentation_loss(full, target, batch["labelled"])
        return total

    return loss


if __name__ == "__main__":
    run_command(main, TeacherSettings, "python -m teacher.train")
