"""SAM 2 over the slices of a volume: a prompt on one of them, then the others outwards from it, by memory alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.picture.prompts import PADDING
from teacher.image_model import Answers, Embedding
from teacher.memory.slice_memory import Bank, SliceMemory, remember, shown
from teacher.promptable import PromptedSam2


class Slices(NamedTuple):
    """What the encoder saw of S slices.

    Attributes:
        seen: features, those at stride 16 without SAM 2's "no earlier frame".
        position: 1×256×H/16×W/16, the encoding of their places.
    """

    seen: Embedding
    position: Tensor


class VolumeSam2(nn.Module):
    """SAM 2 with its memory. Called with pictures it is its automatic form, which knows no neighbours:

    N×3×H×W normalised → logits N×K'×H/4×W/4, see `PromptedSam2`. `track` is what the memory is for.
    """

    def __init__(self, pictures: PromptedSam2, memory: SliceMemory) -> None:
        super().__init__()
        self.pictures, self.memory = pictures, memory

    def forward(self, x: Tensor) -> Tensor:
        return self.pictures(x)  # type: ignore[no-any-return]

    def encode(self, x: Tensor) -> Embedding:
        """N×3×H×W normalised → features."""
        return self.pictures.encode(x)

    def decode(
        self,
        embedding: Embedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """One prompt a picture, without memory; see `Sam2ImageModel.decode`."""
        return self.pictures.decode(embedding, points, labels, mask, has_mask)

    def look(self, x: Tensor) -> Slices:
        """S×3×H×W normalised → what `track` needs of each slice."""
        sam = self.pictures.sam
        found = sam.image_encoder(x)
        fine, middle, image = found["backbone_fpn"]
        decoder = sam.sam_mask_decoder
        embedding = Embedding(image, decoder.conv_s1(middle), decoder.conv_s0(fine))
        return Slices(embedding, found["vision_pos_enc"][-1][:1])

    def track(
        self, slices: Slices, points: Tensor, labels: Tensor, *, start: int, remembering: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Masks of one thing in every slice.

        Args:
            slices: S of them, in their order.
            points: 1×P×2, (x, y) in the input's pixels, on slice `start`.
            labels: 1×P, as `segcore.picture.prompts` numbers them.
            start: the prompted slice.
            remembering: False to look at each slice for itself, the prompt still on its own alone: for comparison.

        Returns:
            Logits S×H/4×W/4 and estimated IoU S.
        """
        sam, bank = self.pictures.sam, Bank()
        nothing = torch.full_like(labels, PADDING)
        answers: dict[int, Answers] = {}
        for place in outwards(start, len(slices.seen.image)):
            one = Embedding(*(features[place : place + 1] for features in slices.seen))
            if bank:
                image = self.memory.read(one.image, slices.position, shown(bank, one.image), place)
            else:  # the prompted slice, or no memory at all
                image = one.image + sam.no_mem_embed.view(1, -1, 1, 1)
            asked = one._replace(image=image)
            # Every slice but the prompted one is asked with padding alone: what it is to show comes from the memory.
            found, tokens = sam.decode_with_tokens(asked, points, labels if place == start else nothing)
            answers[place] = found
            if remembering:
                # The memory encoder takes a mask at the picture's own size.  1 1 H W
                full = F.interpolate(
                    found.logits[:, :1].float(), (sam.image_px,) * 2, mode="bilinear", align_corners=False
                )
                memory = self.memory.write(
                    one.image,
                    full,
                    tokens[:, 0],
                    confidence=found.iou[0, 0].item(),
                    place=place,
                    prompted=place == start,
                )
                bank = remember(bank, memory)
        ordered = [answers[place] for place in range(len(answers))]
        logits = torch.cat([found.logits[:, 0] for found in ordered])
        return logits, torch.cat([found.iou[:, 0] for found in ordered])


def outwards(start: int, count: int) -> list[int]:
    """The numbers of `count` slices, the nearest to `start` first: 2, 3, 1, 4, 0."""
    return sorted(range(count), key=lambda place: (abs(place - start), -place))


class ClipTracker(nn.Module):
    """The network in training: clips and a prompt on the first slice of each → answers on all their slices."""

    def __init__(self, model: VolumeSam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, strips: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tracks each clip with a memory of its own; the gradient goes through the memories.

        Args:
            strips: N×3×(L·H)×H normalised, the L slices of a clip one below the other.
            points: N×P×2.
            labels: N×P.

        Returns:
            Logits N×L×H/4×H/4 and estimated IoU N×L.
        """
        clips = unstack(strips)  # N L 3 H H
        length = clips.shape[1]
        seen, position = self.model.look(clips.flatten(0, 1))
        logits, ious = [], []
        for n in range(len(clips)):
            # L slices of one clip: another clip's must not get into its memory.
            here = Embedding(*(features[n * length : (n + 1) * length] for features in seen))
            found, iou = self.model.track(
                Slices(here, position), points[n : n + 1], labels[n : n + 1], start=0
            )
            logits.append(found)
            ious.append(iou)
        return torch.stack(logits), torch.stack(ious)


def unstack(strips: Tensor) -> Tensor:
    """Square slices out of strips: N×C×(L·H)×H → N×L×C×H×H."""
    side = strips.shape[3]
    return strips.unflatten(2, (-1, side)).transpose(1, 2)
