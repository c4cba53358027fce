"""Which networks have attention: they are quantised in another way, and their graphs hold the batch."""

from __future__ import annotations

from segcore.bundle.manifest import Manifest
from teacher.settings import CONTROLS


def has_attention(manifest: Manifest) -> bool:
    """Every teacher has SAM 2's, but the controls, which are U-Nets; no student has any."""
    return manifest.kind == "teacher" and manifest.architecture not in CONTROLS
