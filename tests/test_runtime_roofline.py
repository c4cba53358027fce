"""The machine's peaks, through the engines themselves."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from runtime.engines.seam import open_engine
from runtime.timing.roofline import (
    ConvStack,
    Roofline,
    _write_probe,
    describe_roofline,
    measure_bandwidth,
    measure_roofline,
    share_of_peak,
)
from segcore.errors import InputError

needs_onnx = pytest.mark.skipif(find_spec("onnx") is None, reason="onnx is not installed")
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("openvino", "onnxruntime")
]


def test_share_of_peak_by_hand():
    assert share_of_peak(200_000_000, 1.0, 400.0) == pytest.approx(0.5)  # 200 GMAC/s of 400
    assert share_of_peak(48_200_000_000, 482.0, 500.0) == pytest.approx(0.2)


def test_macs_of_a_stack():
    assert ConvStack(channels=4, size_px=3, kernel_px=3, layers=2).macs == 2 * (4 * 4) * (3 * 3) * (3 * 3)


def test_peaks_in_words():
    roofline = Roofline("openvino", "2026.1", 2, 537.4, 136.1, 40.9)
    assert describe_roofline(roofline) == (
        "Peak of openvino 2026.1, 2 threads: INT8 537 GMAC/s, FP32 136 GMAC/s, memory 41 GB/s."
    )
    busy = replace(roofline, int8_gmac_s=None, other_load_share=0.42)
    assert describe_roofline(busy) == (
        "Peak of openvino 2026.1, 2 threads: FP32 136 GMAC/s, memory 41 GB/s. "
        "Other programs took 42 % of the processor time meanwhile: measure again when it is quiet."
    )


@needs_onnx
@pytest.mark.parametrize("engine", ENGINES)
def test_8_bit_probe_computes_what_the_32_bit_one_does(engine, tmp_path):
    """Else the engine would be timed on something other than these convolutions."""
    stack = ConvStack(channels=16, size_px=8, kernel_px=3, layers=3)
    picture = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 16), dtype=np.uint8)
    logits = []
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.onnx"
        _write_probe(stack, path, int8=precision == "int8")
        model = open_engine(engine, path, precision=precision, threads=1)
        logits.append(model.run(picture))
        model.close()
    assert logits[0].shape == (1, 1, 8, 8)
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.98
    assert np.abs(logits[0] - logits[1]).max() > 0  # it is another computation


@needs_onnx
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_8_bit_probe_runs_in_8_bits(tmp_path):
    from benchmarks.checks.profile import profile_model

    stack = ConvStack(channels=32, size_px=8, kernel_px=3, layers=3)
    _write_probe(stack, tmp_path / "probe.onnx", int8=True)
    picture = np.zeros((1, 8, 8, 32), np.uint8)
    profile = profile_model(tmp_path / "probe.onnx", picture, threads=1, seconds=0.01)
    convolutions = [layer for layer in profile.layers if layer.work]
    assert [layer.precision for layer in convolutions] == ["i8"] * 4
    assert sum(layer.macs for layer in convolutions) == stack.macs + 32 * 8 * 8  # and the head


@needs_onnx
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_peaks_are_measured():
    roofline = measure_roofline("onnxruntime", 1, seconds=0.01)
    assert (roofline.engine, roofline.threads) == ("onnxruntime", 1)
    assert roofline.engine_version[0].isdigit()
    assert 0.1 < roofline.fp32_gmac_s < 1e5
    assert 0.1 < roofline.int8_gmac_s < 1e5


@needs_onnx
@pytest.mark.skipif(find_spec("openvino") is not None, reason="openvino is installed")
def test_absent_engine_names_its_extra():
    with pytest.raises(InputError, match=r"openvino: must be installed, is not; run: pip install"):
        measure_roofline("openvino", 1, seconds=0.01)


def test_bandwidth_is_that_of_a_copy():
    assert 0.1 < measure_bandwidth(1, seconds=0.01) < 1e4


def test_probe_names_no_path(tmp_path):
    pytest.importorskip("onnx")
    path: Path = tmp_path / "probe.onnx"
    _write_probe(ConvStack(4, 4, 1, 1), path, int8=False)
    assert str(tmp_path).encode() not in path.read_bytes()
