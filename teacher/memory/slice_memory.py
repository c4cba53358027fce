"""SAM 2 over the slices of a volume: a prompt on one slice, and the others follow outwards from it, by memory alone.

* A bank holds what is remembered, and sorts itself: order plays no part. Memories enter by confidence and stay by
  dissimilarity, and a slice is shown those that resemble it. Where the paper samples memories by their similarity, the
  most similar are taken here: the same volume gets the same masks each time. That the less confident of the two most
  similar memories goes is ours, too.
* `SliceMemory` writes a slice into a memory and reads memories into a slice: SAM 2's memory encoder and attention.
* `VolumeSam2` is SAM 2 with both; `ClipTracker` is its form in training.

Source: Zhu et al., Medical SAM 2: Segment Medical Images as Video via Segment Anything Model 2, 2024, for the
bank; Ravi et al., SAM 2, 2024, and its code, for the memory's parts: what they are fed and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.picture.prompts import PADDING
from teacher.promptable import PromptedSam2
from teacher.sam2_model import Answers, Embedding, Sam2ImageModel, build_sam2

CAPACITY = 16
"""Memories of a volume. Source: the default of the paper's code."""
CONFIDENT = 0.5
"""Least estimated IoU of a mask that is worth remembering; ours, the paper gives none."""
SHOWN = 7
"""Memories that a slice is shown, the prompted one among them. Source: SAM 2's own number."""
_FARTHEST = 15  # slices; SAM 2 counts the distances of its 16 object pointers in parts of this
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True)
class Memory:
    """What is remembered of one slice.

    Attributes:
        features: 1×64×h×w, of picture and mask together.
        pointer: 1×256, the mask in one vector.
        picture: features of the picture alone, of any shape; tells slices that resemble each other.
        confidence: estimated IoU of the mask, 0–1.
        place: number of the slice.
        prompted: the mask was asked for by a prompt; such a memory always stays, and is always shown.
    """

    features: Tensor
    pointer: Tensor
    picture: Tensor
    confidence: float
    place: int
    prompted: bool = False


Bank = tuple[Memory, ...]


def remember(bank: Bank, memory: Memory, *, capacity: int = CAPACITY, confident: float = CONFIDENT) -> Bank:
    """The bank with one more memory, if it is confident; past its capacity without the most dispensable one.

    That is, of the two memories that resemble each other most, the less confident one; a prompted one never.
    """
    if not (memory.prompted or memory.confidence >= confident):
        return bank
    grown = (*bank, memory)
    if len(grown) <= capacity:
        return grown
    out = _most_dispensable(grown)
    return tuple(one for i, one in enumerate(grown) if i != out)


def shown(bank: Bank, picture: Tensor, *, most: int = SHOWN) -> Bank:
    """What a slice attends to: every prompted memory, then those whose pictures resemble it most, best first.

    Args:
        bank: at least one memory.
        picture: of the slice, as `Memory.picture`.
        most: how many.
    """
    prompted = [m for m in bank if m.prompted]
    others = [m for m in bank if not m.prompted]
    if not others:
        return tuple(prompted)
    likeness = (_unit_rows([m.picture for m in others]) @ _unit_rows([picture])[0]).tolist()
    order = sorted(range(len(others)), key=lambda i: -likeness[i])  # stable: of equals the earlier first
    return (*prompted, *(others[i] for i in order[: max(0, most - len(prompted))]))


def _most_dispensable(bank: Bank) -> int:
    vectors = _unit_rows([m.features for m in bank])
    likeness = vectors @ vectors.T
    likeness.fill_diagonal_(-torch.inf)
    fixed = torch.tensor([m.prompted for m in bank], device=likeness.device)
    likeness[fixed[:, None] & fixed] = -torch.inf  # neither of two prompted ones can go
    pair = divmod(int(likeness.argmax()), len(bank))
    return min((i for i in pair if not bank[i].prompted), key=lambda i: bank[i].confidence)


def _unit_rows(vectors: Sequence[Tensor]) -> Tensor:
    """One row of length 1 each, as data: what is kept has no gradient."""
    return F.normalize(torch.stack([v.detach().float().flatten() for v in vectors]), dim=1)


class SliceMemory(nn.Module):
    """Memory encoder and memory attention. Its parts have the names of Meta's files.

    The parts that say whether the object is there at all are left out: a mask may be empty, and so may a memory's.
    """

    memory_attention: Any
    memory_encoder: Any
    obj_ptr_proj: nn.Module
    obj_ptr_tpos_proj: nn.Module
    maskmem_tpos_enc: Tensor

    def __init__(self, image_px: int) -> None:
        super().__init__()
        sam2 = build_sam2("tiny", image_px)  # every size of SAM 2.1 has the same memory
        self.memory_attention = sam2.memory_attention
        self.memory_encoder = sam2.memory_encoder
        self.obj_ptr_proj = sam2.obj_ptr_proj
        self.obj_ptr_tpos_proj = sam2.obj_ptr_tpos_proj
        self.maskmem_tpos_enc = sam2.maskmem_tpos_enc  # 7 1 1 64
        self.scale: float = sam2.sigmoid_scale_for_mem_enc
        self.bias: float = sam2.sigmoid_bias_for_mem_enc

    def write(
        self, image: Tensor, logits: Tensor, token: Tensor, *, confidence: float, place: int, prompted: bool
    ) -> Memory:
        """Remembers a slice.

        Args:
            image: 1×256×H/16×W/16, the encoder's features.
            logits: 1×1×H×W, of the slice's mask.
            token: 1×256, the decoder's, of that mask.
            confidence: estimated IoU of the mask.
            place: number of the slice.
            prompted: whether a prompt asked for the mask.
        """
        # SAM 2 stretches the probabilities like this before they are encoded, so the encoder skips its own sigmoid.
        mask = torch.sigmoid(logits.float()) * self.scale + self.bias
        features = self.memory_encoder(image, mask, skip_mask_sigmoid=True)["vision_features"]
        picture = image.detach()  # is only compared: the choice of memories has no gradient
        return Memory(features, self.obj_ptr_proj(token), picture, confidence, place, prompted)

    def read(self, image: Tensor, position: Tensor, bank: Bank, place: int) -> Tensor:
        """The slice's features, conditioned on memories.

        Args:
            image: 1×256×h×w, the encoder's features.
            position: 1×256×h×w, its encoding of their places.
            bank: what the slice is shown, the most important first.
            place: number of the slice.

        Returns:
            1×256×h×w.
        """
        pairs = [self._memory_tokens(memory, rank) for rank, memory in enumerate(bank)]
        # Last, because the attention turns all keys but these by their place in the picture.
        pairs.append(self._pointer_tokens(bank, place))
        attended = self.memory_attention(
            curr=[_to_tokens(image)],
            curr_pos=[_to_tokens(position)],
            memory=torch.cat([tokens for tokens, _ in pairs]),
            memory_pos=torch.cat([where for _, where in pairs]),
            num_obj_ptr_tokens=len(pairs[-1][0]),
        )
        # h·w 1 256 → 1 256 h w
        return attended.permute(1, 2, 0).view_as(image)  # type: ignore[no-any-return]

    def _memory_tokens(self, memory: Memory, rank: int) -> tuple[Tensor, Tensor]:
        """(h·w)×1×64 and their positions.

        SAM 2 has a learned mark for the prompted frame, its last, and one for each frame before the current one, the
        latest first. Slices have no time: here the most similar stands where the latest stood.
        """
        where = self.memory_encoder.position_encoding(memory.features)
        mark = self.maskmem_tpos_enc[-1 if memory.prompted else rank - 1]
        return _to_tokens(memory.features), _to_tokens(where) + mark

    def _pointer_tokens(self, bank: Bank, place: int) -> tuple[Tensor, Tensor]:
        """Each pointer of 256 numbers as four tokens of 64, and how far away its slice is."""
        pointers = torch.stack([m.pointer for m in bank])  # M 1 256
        width = self.maskmem_tpos_enc.shape[-1]
        parts = pointers.shape[-1] // width
        tokens = pointers.unflatten(-1, (parts, width)).permute(0, 2, 1, 3).flatten(0, 1)  # 4M 1 64
        far = torch.tensor([abs(place - m.place) / _FARTHEST for m in bank], device=pointers.device)
        where = self.obj_ptr_tpos_proj(_sine_code(far, pointers.shape[-1]))  # M 64
        return tokens, where[:, None].repeat_interleave(parts, 0)


def _to_tokens(features: Tensor) -> Tensor:
    """1×C×h×w → (h·w)×1×C."""
    return features.flatten(2).permute(2, 0, 1)


def _sine_code(positions: Tensor, width: int) -> Tensor:
    """M numbers → M×width: sines, then cosines, of ever longer waves. Source: Vaswani et al., NeurIPS 2017."""
    half = width // 2
    pairs = torch.arange(half, device=positions.device) // 2
    waves = positions[:, None] / _LONGEST_WAVE ** (2 * pairs / half)
    return torch.cat([waves.sin(), waves.cos()], 1)


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
        found = self.pictures.encode(x)
        assert isinstance(found, Embedding)
        return found

    def decode(self, embedding: Embedding, *prompt: Tensor) -> Answers:
        """One prompt a picture, without memory: points, labels, mask and so on as for `Sam2ImageModel.decode`."""
        return self.pictures.decode(embedding, *prompt)

    @property
    def _sam2(self) -> Sam2ImageModel:
        """SAM 2 it must be: no other model has a memory."""
        return cast(Sam2ImageModel, self.pictures.sam)

    def look(self, x: Tensor) -> Slices:
        """S×3×H×W normalised → what `track` needs of each slice."""
        found = self._sam2.image_encoder(x)
        # The encoding of places is the same for every slice: one of them is enough.
        return Slices(self._sam2.embed(*found["backbone_fpn"]), found["vision_pos_enc"][-1][:1])

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
        sam, bank = self._sam2, Bank()
        nothing = torch.full_like(labels, PADDING)
        answers: dict[int, Answers] = {}
        for place in outwards(start, len(slices.seen.image)):
            one = Embedding(*(features[place : place + 1] for features in slices.seen))
            if bank:
                image = self.memory.read(one.image, slices.position, shown(bank, one.image), place)
            else:  # the prompted slice, or no memory at all
                image = sam.without_memory(one.image)
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
