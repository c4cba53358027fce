"""Simulated interactive training: a box or a point, an answer, a point where the answer is wrong, the next answer, …

Source: Kirillov et al., Segment Anything, ICCV 2023, appendix A; Cheng et al., SAM-Med2D, 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.learn.augment import Sample
from segcore.prompts import MASK_CLIP
from teacher.image_model import Answers
from teacher.promptable import SLOTS, PromptedSam2, best
from teacher.prompts.mask_losses import dice, focal, overlap
from teacher.prompts.simulated import error_points, first_prompts, pick_objects
from teacher.system import Loss

_FOCAL, _DICE, _IOU = 20.0, 1.0, 1.0
"""Weights of the loss. Source: Kirillov et al. 2023, appendix A; SAM-Med2D keeps them."""


class InteractiveRounds(nn.Module):
    """A promptable network in training: pictures N×3×H×W and objects N×H×W bool → the answers of each round.

    The features are made once; each round's prompt holds the points so far and the last answer's logits, both as data:
    no gradient flows back to the round before.
    """

    def __init__(self, model: PromptedSam2, rounds: int) -> None:
        super().__init__()
        self.model, self.rounds = model, rounds

    def forward(self, x: Tensor, truth: Tensor) -> list[Answers]:
        embedding = self.model.encode(x)
        points, labels = first_prompts(truth, SLOTS)
        answers = [self.model.sam.decode(embedding, points, labels)]
        for slot in range(2, self.rounds + 1):
            before = answers[-1]
            last = best(Answers(before.logits[:, 1:], before.iou[:, 1:])).detach().float()[:, None]
            last = last.clamp(-MASK_CLIP, MASK_CLIP)
            found = F.interpolate(last, truth.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
            points, labels = points.clone(), labels.clone()  # autograd keeps those of the round before
            points[:, slot : slot + 1], labels[:, slot : slot + 1] = error_points(found, truth)
            answers.append(self.model.sam.decode(embedding, points, labels, last))
        return answers


def interactive_loss(classes: int) -> Loss:
    """Focal (20) + Dice (1) + squared error of the estimated IoU (1), mean over rounds, then pictures with an object.

    Of three candidates the one with the least focal + Dice counts, so that they may differ, and every candidate's
    estimate; the single-mask answer learns beside them, so that the decoder stays whole.
    """

    def loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
        truth, has_object = pick_objects(sample["mask"], classes)
        rounds = [_answers_loss(answers, truth) for answers in network(images, truth)]
        weight = (has_object & sample["labelled"]).float()
        return (torch.stack(rounds).mean(0) * weight).sum() / weight.sum().clamp(min=1)

    return loss


def _answers_loss(answers: Answers, truth: Tensor) -> Tensor:
    """N numbers."""
    logits = F.interpolate(answers.logits.float(), truth.shape[1:], mode="bilinear", align_corners=False)
    mask = _FOCAL * focal(logits, truth) + _DICE * dice(logits, truth)  # N 4
    estimate = _IOU * (answers.iou.float() - overlap(logits, truth)).square()
    several = mask[:, 1:].min(1).values + estimate[:, 1:].mean(1)
    return (mask[:, 0] + estimate[:, 0] + several) / 2
