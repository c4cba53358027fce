"""SAM 2 for single pictures: an encoder that looks once, and a decoder that answers prompts."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from teacher.sam2_model import build_sam2
from teacher.settings import EncoderSize

STRIDE = 4  # of the masks' logits
MASKS = 4
"""Candidates of SAM 2's mask decoder: one for a clear prompt, three for an ambiguous one."""


class Embedding(NamedTuple):
    """What the encoder saw of N pictures: features at strides 16, 8 and 4.

    Attributes:
        image: N×256×H/16×W/16.
        middle: N×64×H/8×W/8.
        fine: N×32×H/4×W/4.
    """

    image: Tensor
    middle: Tensor
    fine: Tensor


class Answers(NamedTuple):
    """Candidate masks for N prompts.

    Attributes:
        logits: N×M×H/4×W/4.
        iou: N×M, the decoder's own estimate, 0–1.
    """

    logits: Tensor
    iou: Tensor


@runtime_checkable
class Promptable(Protocol):
    """What a promptable bundle's network offers beside being called with a picture."""

    def encode(self, x: Tensor) -> Embedding:
        """N×3×H×W normalised → features."""
        ...

    def decode(
        self, embedding: Embedding, points: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> Answers:
        """Candidates for one prompt a picture; see `Sam2ImageModel.decode`."""
        ...


class Sam2ImageModel(nn.Module):
    """SAM 2.1 without its memory, for square pictures of one size. Its parts have the names of Meta's files."""

    image_encoder: Any
    sam_prompt_encoder: Any
    sam_mask_decoder: Any
    no_mem_embed: Tensor

    def __init__(self, size: EncoderSize, image_px: int) -> None:
        super().__init__()
        sam2 = build_sam2(size, image_px)
        self.image_px = image_px
        self.image_encoder = sam2.image_encoder
        self.sam_prompt_encoder = sam2.sam_prompt_encoder
        self.sam_mask_decoder = sam2.sam_mask_decoder
        self.no_mem_embed = sam2.no_mem_embed

    def encode(self, x: Tensor) -> Embedding:
        """N×3×H×W normalised → features, as SAM 2's image predictor has them."""
        fine, middle, image = self.image_encoder(x)["backbone_fpn"]
        decoder = self.sam_mask_decoder
        image = image + self.no_mem_embed.view(1, -1, 1, 1)  # SAM 2's "no earlier frame"
        return Embedding(image, decoder.conv_s1(middle), decoder.conv_s0(fine))

    def decode(
        self,
        embedding: Embedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """Candidates for one prompt a picture.

        Args:
            embedding: of N pictures; to ask several prompts of one picture, repeat its features.
            points: N×P×2, (x, y) in the input's pixels.
            labels: N×P float, as `segcore.picture.prompts` numbers them.
            mask: N×1×H/4×W/4, the logits of an earlier answer; None where none is.
            has_mask: N×1 float, 1 where `mask` counts, so that one graph serves both; None where all do.

        Returns:
            `MASKS` candidates each, the single-mask answer first.
        """
        return self.decode_with_tokens(embedding, points, labels, mask, has_mask)[0]

    def decode_with_tokens(
        self,
        embedding: Embedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> tuple[Answers, Tensor]:
        """As `decode`, with the candidates' tokens, N×`MASKS`×256, which SAM 2's memory keeps."""
        sparse = self.sam_prompt_encoder._embed_points(points, labels, pad=True)  # N P+1 256
        none = self.sam_prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = none.expand(len(points), -1, *embedding.image.shape[2:])
        if mask is not None:
            given = self.sam_prompt_encoder._embed_masks(mask)
            dense = given if has_mask is None else torch.where(has_mask[..., None, None] > 0, given, dense)
        logits, iou, tokens, _ = self.sam_mask_decoder.predict_masks(
            image_embeddings=embedding.image,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[embedding.fine, embedding.middle],
        )
        return Answers(logits, iou), tokens
