"""TensorRT's files: each checked against its rules, and written again with 16-bit tensors for typed networks."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from export.graph.fp16_typed import check_fp16_range, run_fp16_typed, to_fp16_typed
from export.job import Job
from export.rules.check import require_clean
from runtime.parity import PARITY_LIMITS, ParityLimits, check_parity
from segcore.bundle.golden import golden_inputs
from segcore.bundle.manifest import Variant
from segcore.command import log
from segcore.errors import GateError
from segcore.picture.preprocess import OutputSpec

TYPED_8 = ("8.6", "10.3")
"""Versions that take the graph typed FP32 and choose precisions by flags."""
TYPED_10 = ("10.13", "10.16", "11.4")
"""Versions whose networks are strongly typed: FP16 must be in the graph."""


def type_for_tensorrt(job: Job, files: Collection[Variant]) -> list[Variant]:
    """Checks every file against TensorRT's rules; for fp16 and int8 writes each again with 16-bit tensors.

    Args:
        job: in whose folder the files are.
        files: graphs typed FP32.

    Returns:
        The 16-bit files.

    Raises:
        GateError: a rule is broken, or 16 bits change the masks.
    """
    half = job.precision != "fp32"
    typed = []
    for one in files:
        model = onnx.load(job.folder / one.file, load_external_data=False)
        warnings = require_clean(model, TYPED_8 if half else TYPED_8 + TYPED_10, name=one.file)
        for text in dict.fromkeys(f"{w.rule} {w.node}: {w.text}" for w in warnings):
            log(f"TensorRT: {text}")
        if not half:
            continue
        variant = one.model_copy(
            update={"file": one.file.replace(".onnx", "-fp16typed.onnx"), "typing": "fp16"}
        )
        narrow = to_fp16_typed(model)
        require_clean(narrow, TYPED_10, name=variant.file)
        onnx.save(narrow, job.folder / variant.file)
        if one.batch == 1:
            size = {"height_px": one.height_px, "width_px": one.width_px}
            inputs = golden_inputs(job.parent.input.model_copy(update=size))
            _check_narrow(model, narrow, inputs, PARITY_LIMITS[job.precision], job.parent.output)
        typed.append(variant)
    return typed


def _check_narrow(
    wide: onnx.ModelProto,
    narrow: onnx.ModelProto,
    inputs: np.ndarray,
    limits: ParityLimits,
    output: OutputSpec,
) -> None:
    """16-bit tensors must leave the golden masks as they are, as far as a CPU can tell.

    Raises:
        GateError: they do not, or a value on the way is beyond what 16 bits hold.
    """
    pictures = [picture[None] for picture in inputs]
    check_fp16_range(wide, pictures)
    size = (inputs.shape[1], inputs.shape[2])
    parity = check_parity(
        run_fp16_typed(narrow, pictures), run_fp16_typed(wide, pictures), output, [size] * len(inputs)
    )
    if failures := parity.failures(limits):
        raise GateError(
            f"16-bit tensors against 32-bit ones in onnxruntime: {'; '.join(failures)}; use --precision fp32"
        )
