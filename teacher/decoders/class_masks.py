"""SAM's mask decoder with one mask a class, asked by a prompt that is learned and not given.

Source: Kirillov et al., Segment Anything, ICCV 2023, and Ravi et al., SAM 2, 2024, for the decoder; Zhang and Liu,
Customized Segment Anything Model for Medical Image Segmentation, 2023, for one mask a class and the default prompt.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.augment import Sample
from segcore.learn.losses import cross_entropy, dice_loss
from segcore.picture.preprocess import OutputSpec, output_spec
from teacher.encoder import build_image_model, load_for_system
from teacher.sam2_model import MASKS, ImageModel
from teacher.settings import TeacherSettings
from teacher.system import Task
from teacher.tuning.tune import Tuning, adapted_encoder, tune_encoder, tuning_of

FROZEN = ("image_encoder.neck", "sam_prompt_encoder", "sam_mask_decoder")
"""Parts of SAM 2, beside the encoder itself, whose weights `train_head` leaves as they are, or most of them."""


class ClassMaskDecoder(nn.Module):
    """The features of SAM 2, or of a relative of SAM 1 → one mask a class.

    Made of the parts of SAM and with their weights: channel c starts as SAM's candidate c mod 4, so that with four
    channels it computes at first what SAM answers to an empty prompt. The tokens of SAM's IoU estimate and of SAM 2's
    object score are still attended to; their heads are gone.

    Attributes:
        transformer: SAM's two-way transformer between tokens and picture.
        frequencies: 2×D/2, SAM's random ones, of which positions are made; a buffer.
        default_prompt: 1×D, SAM's "no point", the one token of the prompt.
        default_mask: D, added to the features: SAM's "no mask", with SAM 2's "no earlier frame", which only occur as a
            sum.
        context: tokens of the object score, where there is one, and of the IoU estimate: 2×D, or 1×D.
        mask_tokens: C×D, one a channel.
        hypernetworks: a token's answer → its weights of the upscaled features, one a channel.
    """

    def __init__(self, sam: ImageModel, outputs: int) -> None:
        super().__init__()
        prompts, decoder = sam.sam_prompt_encoder, sam.sam_mask_decoder
        candidates = [c % MASKS for c in range(outputs)]
        self.transformer: nn.Module = decoder.transformer
        self.frequencies: Tensor
        self.register_buffer("frequencies", prompts.pe_layer.positional_encoding_gaussian_matrix.clone())
        self.default_prompt = _parameter(prompts.not_a_point_embed.weight)
        self.default_mask = _parameter(sam.without_mask)
        scores = [decoder.obj_score_token.weight] if decoder.pred_obj_scores else []
        self.context = _parameter(torch.cat([*scores, decoder.iou_token.weight]))
        self.mask_tokens = _parameter(decoder.mask_tokens.weight[candidates])
        self.hypernetworks = nn.ModuleList(
            copy.deepcopy(decoder.output_hypernetworks_mlps[c]) for c in candidates
        )
        if decoder.use_high_res_features:
            self.skip_fine, self.skip_middle = decoder.conv_s0, decoder.conv_s1
        self.up_middle, self.norm, _, self.up_fine, _ = decoder.output_upscaling

    def forward(self, image: Tensor, *skips: Tensor) -> Tensor:
        """Features N×D×h×w, and for SAM 2 N×D×2h×2w and N×D×4h×4w → logits N×C×4h×4w."""
        n, _, h, w = image.shape
        tokens = torch.cat([self.context, self.mask_tokens, self.default_prompt])  # 2+C+1 D
        positions = dense_positions(self.frequencies, h, w).expand(n, -1, -1, -1)
        image = image + self.default_mask.view(1, -1, 1, 1)
        tokens, image = self.transformer(image, positions, tokens.expand(n, -1, -1))  # N 2+C+1 D, N h·w D
        image = image.transpose(1, 2).reshape(n, -1, h, w)  # N D h w
        x = self.up_middle(image)  # N D/4 2h 2w
        x = x + self.skip_middle(skips[0]) if skips else x
        x = self.up_fine(F.gelu(self.norm(x)))  # N D/8 4h 4w
        x = F.gelu(x + self.skip_fine(skips[1]) if skips else x)
        first = len(self.context)  # the classes' tokens come after those
        weights = [net(tokens[:, first + c]) for c, net in enumerate(self.hypernetworks)]
        masks = torch.stack(weights, dim=1) @ x.flatten(2)  # N C 4h·4w
        return masks.view(n, -1, 4 * h, 4 * w)


class ClassMaskNetwork(nn.Module):
    """N×3×H×W normalised, H and W multiples of 32 → logits N×C×H/s×W/s, s SAM's stride.

    Attributes:
        neck: SAM 2's, between encoder and decoder; None where the encoder has it.
    """

    neck: nn.Module | None

    def __init__(self, sam: ImageModel, outputs: int) -> None:
        super().__init__()
        self.encoder: nn.Module = sam.image_encoder.trunk
        self.neck = getattr(sam.image_encoder, "neck", None)
        if self.neck is not None:  # what this makes is for the memory alone
            self.neck.position_encoding = nn.Identity()
        self.decoder = ClassMaskDecoder(sam, outputs)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder(x)
        if self.neck is None:
            return self.decoder(maps[0])  # type: ignore[no-any-return]
        fine, middle, image, _ = self.neck(maps)[0]  # N 256 h w each, at strides 4, 8, 16 and 32
        return self.decoder(image, middle, fine)  # type: ignore[no-any-return]


class ClassMaskParts(NamedTuple):
    """What such a system is made of before it says what of the decoder is trained.

    Attributes:
        network: with SAM's weights; its encoder is tuned as `tuning` says, nothing else is frozen yet.
        tuning: of the encoder.
        output: of the network.
        pretrained: where the weights came from.
    """

    network: ClassMaskNetwork
    tuning: Tuning
    output: OutputSpec
    pretrained: str


def prepare_class_masks(settings: TeacherSettings, task: Task) -> ClassMaskParts:
    """Builds the network, loads its weights and tunes its encoder as the flags say.

    Raises:
        InputError: the weights are wrong, or lack a part that stays frozen.
    """
    sam, tuning = build_image_model(settings.encoder_name, task.spec.height_px), tuning_of(settings)
    output = output_spec(task.classes, stride=sam.stride)
    pretrained = load_for_system(sam, settings, frozen=FROZEN)
    network = ClassMaskNetwork(sam, output.channels)
    network.encoder = tune_encoder(network.encoder, tuning)
    return ClassMaskParts(network, tuning, output, pretrained)


def open_class_masks(manifest: Manifest) -> ClassMaskNetwork:
    """The network of a bundle with random weights, and adapters in its encoder where the bundle has them."""
    settings = manifest.architecture_settings
    sam = build_image_model(settings["encoder"], manifest.input.height_px)
    network = ClassMaskNetwork(sam, manifest.output.channels)
    network.encoder = adapted_encoder(network.encoder, settings)
    return network


def train_head(network: ClassMaskNetwork) -> None:
    """Freezes the neck and the transformer; the rest of the decoder, with its learned prompt, is trained. In place.

    The encoder is left to `tune_encoder`; updates of the transformer are added afterwards.
    """
    if network.neck is not None:
        network.neck.requires_grad_(False)
    network.decoder.requires_grad_(True)
    network.decoder.transformer.requires_grad_(False)


def dense_positions(frequencies: Tensor, height: int, width: int) -> Tensor:
    """SAM's code of each pixel's place, 1×D×H×W.

    Multiplied out by hand, because a matrix product of autocast would round the angles to 8 bits.

    Args:
        frequencies: 2×D/2, along x and y.
        height: of the features.
        width: of the features.
    """
    device = frequencies.device
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1  # −1 to 1
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    along_x = x.view(1, 1, 1, -1) * frequencies[0].view(1, -1, 1, 1)
    along_y = y.view(1, 1, -1, 1) * frequencies[1].view(1, -1, 1, 1)
    angles = 2 * math.pi * (along_x + along_y)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def class_mask_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    """0.3·CE + 0.7·Dice, as SAM-LoRA and SAM-Adapter were trained with on FLARE22; one class: 0.3·BCE + 0.7·Dice.

    Of the logits upsampled to the mask.
    """
    target, labelled = sample["mask"], sample["labelled"]
    full = F.interpolate(network(images).float(), target.shape[1:], mode="bilinear", align_corners=False)
    weighted = cross_entropy(full, target, labelled, sample.get("weight"))
    return 0.3 * weighted + 0.7 * dice_loss(full, target, labelled)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())
