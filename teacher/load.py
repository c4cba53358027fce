"""Opens any teacher's bundle."""

from __future__ import annotations

from torch import nn

from segcore.bundle import Bundle
from segcore.learn.weights import check_torch_bundle, load_weights


def load_teacher(bundle: Bundle) -> nn.Module:
    """Builds the network of a torch bundle and loads its weights; in eval mode, without peft.

    Called with a picture it gives logits; a promptable one (`Manifest.prompt`) also has `encode` and `decode`, see
    `teacher.image_model.Promptable`.

    Raises:
        InputError: not a teacher in torch format.
    """
    from teacher.system import open_plain

    check_torch_bundle(bundle, "teacher")
    return load_weights(open_plain(bundle.manifest), bundle)
