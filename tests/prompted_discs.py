"""A promptable bundle whose answers can be worked out in the head: it marks a disc around each point, and boxes.

Written as ONNX by hand, 64 px: a pixel is marked within `RADIUS_PX` of a point on the thing or inside the box, unless a
point beside the thing is as near. The automatic model marks what is brighter than a half.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from segcore.bundle.folder import seal_bundle
from segcore.bundle.manifest import DataRecord
from segcore.host import made_now
from segcore.picture.preprocess import InputSpec, output_spec
from segcore.picture.prompts import PromptSpec

SIDE, STRIDE, SLOTS, RADIUS_PX = 64, 4, 5, 12.0
HEAD = SIDE // STRIDE

AUTOMATIC = """<ir_version: 8, opset_import: ["" : 17]>
automatic (uint8[1,64,64,1] picture) => (float[1,K,16,16] logits) {
  wide = Cast <to = 1> (picture)
  planes = Transpose <perm = [0, 3, 1, 2]> (wide)
  small = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (planes)
  centred = Sub (small, half)
  logits = Mul (centred, slopes)
}"""

ENCODER = """<ir_version: 8, opset_import: ["" : 17]>
encoder (uint8[1,64,64,1] picture) => (float[1,1,4,4] image, float[1,1,8,8] middle, float[1,1,16,16] fine) {
  wide = Cast <to = 1> (picture)
  unit = Div (wide, most)
  planes = Transpose <perm = [0, 3, 1, 2]> (unit)
  fine = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (planes)
  middle = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (fine)
  image = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (middle)
}"""

# Slots are the second axis of everything with four.
DECODER = """<ir_version: 8, opset_import: ["" : 17]>
decoder (float[1,1,4,4] image, float[1,1,8,8] middle, float[1,1,16,16] fine, float[1,5,2] points, float[1,5] labels,
         float[1,1,16,16] mask, float[1,1] has_mask) => (float[1,1,16,16] logits, float[1,1] iou) {
  px, py = Split <axis = 2> (points)
  x = Unsqueeze (px, last)
  y = Unsqueeze (py, last)
  kinds = Reshape (labels, slots)
  dx = Sub (across, x)
  dy = Sub (down, y)
  dx2 = Mul (dx, dx)
  dy2 = Mul (dy, dy)
  far = Add (dx2, dy2)
  near = Sub (radius2, far)
  is_on = Equal (kinds, one)
  is_beside = Equal (kinds, zero)
  is_first = Equal (kinds, two)
  is_second = Equal (kinds, three)
  on_each = Where (is_on, near, never)
  beside_each = Where (is_beside, near, never)
  on = ReduceMax <axes = [1]> (on_each)
  beside = ReduceMax <axes = [1]> (beside_each)
  left_each = Where (is_first, dx, never)
  top_each = Where (is_first, dy, never)
  minus_dx = Neg (dx)
  minus_dy = Neg (dy)
  right_each = Where (is_second, minus_dx, never)
  bottom_each = Where (is_second, minus_dy, never)
  left = ReduceMax <axes = [1]> (left_each)
  top = ReduceMax <axes = [1]> (top_each)
  right = ReduceMax <axes = [1]> (right_each)
  bottom = ReduceMax <axes = [1]> (bottom_each)
  boxed = Min (left, top, right, bottom)
  wanted = Max (on, boxed)
  spared = Neg (beside)
  logits = Min (wanted, spared)
  bright = ReduceMean <axes = [2, 3], keepdims = 0> (fine)
  tenth = Mul (has_mask, step)
  iou = Add (bright, tenth)
}"""


def mended_iou(picture: np.ndarray, mended: bool) -> float:
    """What the decoder says of its mask: the picture's mean brightness, and a tenth more with an earlier mask."""
    return float(picture.mean() / 255 + 0.1 * mended)


def write_bundle(
    folder: Path, classes: tuple[str, ...] = ("lung",), *, mask_input: bool = True, promptable: bool = True
) -> Path:
    """Seals the bundle; its automatic mask is what is brighter than a half.

    Args:
        folder: not there yet.
        classes: of the automatic model; of several, the first is never marked, the last what is bright.
        mask_input: whether an earlier mask is part of the question.
        promptable: False leaves encoder and decoder out.
    """
    folder.mkdir(parents=True)
    output = output_spec(classes, STRIDE)
    slopes = np.linspace(-0.1, 0.1, output.channels) if output.channels > 1 else np.array([0.1])
    _write(
        folder / "model.onnx",
        AUTOMATIC.replace("K", str(output.channels)),
        half=127.5,
        slopes=slopes.reshape(1, -1, 1, 1),
    )
    if promptable:
        _write_parts(folder)
    seal_bundle(
        folder, name="discs", kind="teacher", format="onnx", precision="fp32", architecture="discs",
        architecture_settings={}, classes=classes,
        input=InputSpec(height_px=SIDE, width_px=SIDE, channels=1, mean=(0.5,), std=(0.5,)), output=output,
        parameters=1, trained_parameters=1, macs=1, pretrained="no pretrained weights",
        data=DataRecord(name="phantom:cxr", sha256="0" * 64, split_sha256="1" * 64),
        prompt=PromptSpec(
            kinds=("point", "box"), slots=SLOTS, masks=1, mask_input=mask_input,
            encoder_file="encoder.onnx", decoder_file="decoder.onnx",
        ) if promptable else None,
        made=made_now(), model_file="model.onnx",
    )  # fmt: skip
    return folder


def _write_parts(folder: Path) -> None:
    _write(folder / "encoder.onnx", ENCODER, most=255.0)
    centres = (np.arange(HEAD, dtype=np.float32) + 0.5) * STRIDE - 0.5
    numbers = {"one": 1, "zero": 0, "two": 2, "three": 3, "never": -1e4, "step": 0.1}
    _write(
        folder / "decoder.onnx", DECODER, across=centres.reshape(1, 1, 1, -1), down=centres.reshape(1, 1, -1, 1),
        radius2=RADIUS_PX**2, slots=np.array([1, SLOTS, 1, 1]), last=np.array([3]), **numbers,
    )  # fmt: skip


def _write(path: Path, text: str, **constants: object) -> None:
    model = parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value)
        whole = array.dtype.kind == "i" and array.ndim > 0  # shapes and axes
        tensor = numpy_helper.from_array(array.astype(np.int64 if whole else np.float32), name)
        model.graph.initializer.append(tensor)
    onnx.checker.check_model(model)
    onnx.save(model, path)
