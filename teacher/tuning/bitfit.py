"""Nothing but biases is trained.

Source: Ben Zaken et al., BitFit: Simple Parameter-Efficient Fine-Tuning for Transformer-Based Masked Language-Models,
ACL 2022.
"""

from __future__ import annotations

from torch import nn


def train_biases(encoder: nn.Module) -> nn.Module:
    """Freezes all but the biases, of which norms have one, too; in place."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return encoder
