import numpy as np

from segcore.bundle.golden import golden_inputs, load_golden, save_golden
from segcore.phantom import PHANTOM_CLASSES
from segcore.picture.preprocess import InputSpec


def spec(**fields) -> InputSpec:
    return InputSpec(height_px=32, width_px=48, channels=1, mean=(0.5,), std=(0.5,), **fields)


def test_inputs_are_the_same_bytes_each_time_and_for_every_depth():
    first = golden_inputs(spec())
    assert (first.shape, first.dtype) == ((4 * len(PHANTOM_CLASSES), 32, 48, 1), np.uint8)
    np.testing.assert_array_equal(first, golden_inputs(spec(depth="uint16", window=(5, 900))))
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) == len(first)


def test_saved_cases_come_back(tmp_path):
    inputs = golden_inputs(spec())
    logits = np.random.default_rng(0).normal(size=(len(inputs), 1, 8, 12))
    save_golden(tmp_path, inputs, logits)
    found_inputs, found_logits = load_golden(tmp_path)
    np.testing.assert_array_equal(found_inputs, inputs)
    np.testing.assert_array_equal(found_logits, logits.astype(np.float32))
