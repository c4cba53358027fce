"""Every reader of bytes from outside, given damaged ones: it refuses them in one line, in time, or reads them.

The same inputs every time, a minute's worth; `make fuzz` gives hundreds of thousands (tests/fuzz.py).
"""

import json
import struct
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segcore.errors import InputError


def beside(name):
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz, targets = beside("fuzz"), beside("fuzz_targets")
SLOW_SHARE, FEW, MANY = 1.0, 6, 40


def short(inputs):
    """Hypothesis with the same inputs every time, and none of what it keeps or complains of."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=inputs,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", targets.TARGETS)
def test_damaged_bytes_are_refused_or_read(tmp_path, name):
    target = targets.TARGETS[name](tmp_path)
    for seed in target.seeds:
        assert fuzz.attempt(target.read, seed) in ("accepted", "refused")

    @short(FEW if targets.SHARES.get(name, targets.USUAL_SHARE) <= SLOW_SHARE else MANY)
    @given(st.randoms(use_true_random=False))
    def damaged(random):
        fuzz.attempt(target.read, fuzz.mutate(target.seeds, random))

    damaged()


# What was once a fault, by target; the smallest input that makes it.


def _npy(header):
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header


def _zip(*names):
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


_DESIGN = {"stem": "strided", "stem_stride": 2, "widths": [2, 2], "depths": [1, 1], "up_depths": [1]}
_HUGE = _npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 4, 4, 1)}\n")
FOUND = [
    ("settings file, YAML", b"a: !!timestamp x"),
    ("settings file, YAML", b"a: 2001-02-31"),
    ("settings file, YAML", b"a: " + b"[" * 3000),
    ("settings file, YAML", b"a: &a [*a]"),
    ("settings file, YAML", b"\xff\xfea"),
    ("settings file, a command's flags", b"cli_args: [x]"),
    ("settings file, a command's flags", b"model_cls: 1\n_cli_parse_args: 2"),
    ("settings file, a command's flags", b'"a\\nb": 1'),
    ("augmentation file", b"- " + b"x" * 3000),
    ("design file", b"{widths: [16, 16], depths: [1, 1], up_depths: [2000000]}"),
    ("design file", b"{widths: [16, 100000], depths: [1, 1], up_depths: [1]}"),
    ("index.csv", b"case,image\na\0,b.png\n"),
    ("index.csv", b"case,image\na," + b"x" * 300 + b"\n"),
    ("index.csv", b"case,image\na," + b"x/" * 3000 + b"\n"),
    ("index.csv", b'case,image\n"a\x1b[2J\nb",\n'),
    ("classes.txt", b"lung\0\n"),
    ("list of inputs, .txt", b"x" * 5000),
    ("list of inputs, .csv", b"image,case\na.png,\x1b[2J/..\n"),
    ("soft labels, labels.json", b"\xff"),
    ("soft labels, labels.json", targets._soft_record().model_dump_json().replace('["lung"]', "[]").encode()),
    ("soft labels, shard", b""),
    ("soft labels, shard", _npy(b"{'descr': (")),
    ("soft labels, shard", _npy(b"{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999999999999, 1, 4, 4)}\n")),
    ("soft labels, shard", _npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1, 4, 4)}\n")),
    ("soft labels, list of a shard", b"{}"),
    ("soft labels, list of a shard", b"[1]"),
    ("golden.npz", b""),
    ("golden.npz", b"PK\5\6" + bytes(18)),
    ("golden.npz", b"x"),
    ("golden.npz, content", _npy(b"{'descr': (")),
    ("golden.npz, content", _HUGE),
    ("golden_prompts.npz", b"PK\5\6" + bytes(18)),
    ("student, weights", b""),
    ("student, weights", struct.pack("<Q", 2**63) + b"{}"),
    ("student, weights", struct.pack("<Q", 2) + b"{}"),
    ("student, settings", json.dumps({**_DESIGN, "up_depths": [2_000_000]}).encode()),
    ("student, settings", b'{"architecture": "unet"}'),
    ("student, settings", b'{"architecture": "unet", "base": 100000}'),
    ("teacher, settings", b'{"architecture": "none"}'),
    ("teacher, settings", b'{"architecture": "unet"}'),
    ("teacher, settings", b'{"architecture": "unet", "base": "8"}'),
    ("teacher, settings", b'{"architecture": "sam2-lora", "encoder": "huge"}'),
    ("adapter folder", b'{"kind": "adapter"}'),
    ("adapter folder", b'{"peft_type": "NONE"}'),
    ("adapter folder", b'{"peft_type": "LORA", "r": "x", "target_modules": ["0"]}'),
    ("adapter folder", b"\xff"),
    ("checkpoint, .pt", b""),
    ("checkpoint, .pt", b"\x80\x02."),
    ("checkpoint, .pt", b"\x80\x02}K\x01K\x02s."),
    ("checkpoint, .safetensors", b""),
    ("training, checkpoint", b""),
    ("training, checkpoint", b"PK\3\4"),
    ("training, checkpoint", b"\x80\x02}."),
    ("training, steps.csv", b"epoch\n1\n"),
    ("training, steps.csv", b"epoch,step,loss,lr\n1\n"),
    ("training, steps.csv", b"epoch,step,loss,lr\n1,2,3,4,5\n"),
    ("training, steps.csv", b"\xff"),
    ("predictions.jsonl", b"[]\n"),
    ("predictions.jsonl", b'{"case": 1}\n'),
    ("predictions.jsonl", b"[" * 100_000 + b"\n"),
    ("device-report.json", b'{"schema_version": 1, "a\\nb": 2}'),
    ("device-report.json", b"[" * 100_000),
    ("settings.json of a partial", b'{"a\\nb": 1}'),
    ("settings.json of a partial", b"[]"),
    ("settings.json of a partial", b"[" * 100_000),
    ("cache of features", _npy(b"{'descr': (")),
    ("TensorRT, layers of an engine", b'{"Layers": 3}'),
    ("ZIP", _zip("a", "a/b")),
    ("ZIP", _zip("a" * 300)),
    ("ZIP", _zip("a/" * 700)),
    ("manifest.json", b"[" * 100_000),
    ("manifest.json", b'{"schema_version": ' + b"9" * 5000 + b"}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_once_a_fault(tmp_path, name, data):
    target = targets.TARGETS[name](tmp_path)
    outcome = fuzz.attempt(target.read, data)
    assert outcome == ("accepted" if name == "cache of features" else "refused")  # a cache is made anew


# What is made and not damaged: text of any letters, values of any shape.

_CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _CELLS | st.dates() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_CELLS, inner, max_size=3),
    max_leaves=9,
)


def test_tables_of_any_text(tmp_path):
    index = targets.TARGETS["index.csv"](tmp_path)
    listed = targets.TARGETS["list of inputs, .csv"](tmp_path)

    @short(80)
    @given(
        st.lists(st.lists(_CELLS, min_size=2, max_size=5), max_size=5), st.sampled_from(",;\t"), st.booleans()
    )
    def any_text(rows, separator, quoted):
        cells = [["case", "image", "mask", "spacing_row_mm", "split"], *rows]
        if quoted:
            cells = [[f'"{cell}"' for cell in row] for row in cells]
        data = "\n".join(separator.join(row) for row in cells).encode()
        fuzz.attempt(index.read, data)
        fuzz.attempt(listed.read, data)

    any_text()


def test_settings_of_any_shape(tmp_path):
    files = [
        targets.TARGETS[name](tmp_path)
        for name in ("settings file, YAML", "augmentation file", "design file")
    ]

    @short(60)
    @given(_YAML)
    def any_shape(value):
        data = yaml.safe_dump(value).encode("utf-8", "replace")
        for file in files:
            fuzz.attempt(file.read, data)

    any_shape()


def test_nifti_headers_of_any_numbers(tmp_path):
    target = targets.TARGETS["NIfTI"](tmp_path)

    @short(120)
    @given(
        st.lists(st.integers(-3, 9) | st.sampled_from([32767, -32768]), min_size=8, max_size=8),
        st.lists(st.floats(width=32), min_size=8, max_size=8),
        st.sampled_from([2, 4, 8, 16, 64, 128, 256, 512, 768, 1792, 0, 1]),
        st.floats(width=32),
        st.integers(0, 5),
    )
    def any_numbers(dim, pixdim, kind, offset, code):
        data = bytearray(target.seeds[1] + bytes(4000))
        data[40:56] = struct.pack("<8h", *dim)
        data[70:74] = struct.pack("<2h", kind, 8)
        data[76:108] = np.array(pixdim, "<f4").tobytes()
        data[108:112] = np.array(offset, "<f4").tobytes()
        data[252:256] = struct.pack("<2h", code, code)
        fuzz.attempt(target.read, bytes(data))

    any_numbers()


# The harness itself: it must see what it is there for.


def test_the_harness_sees_bugs_long_messages_and_hangs():
    def raises(error):
        def read(data):
            raise error

        return read

    for error in (
        TypeError("x"),
        KeyError("x"),
        ValueError("x"),
        SystemExit(2),
        RecursionError(),
        MemoryError(),
    ):
        with pytest.raises(fuzz.Fault, match=type(error).__name__):
            fuzz.attempt(raises(error), b"")
    long = InputError("a")
    long.args = ("a" * 501,)
    broken = InputError("a")
    broken.args = ("a\nb",)
    for error in (long, broken):
        with pytest.raises(fuzz.Fault, match="the message must be one printable line"):
            fuzz.attempt(raises(error), b"")

    def hang(data):
        while True:
            pass

    with pytest.raises(fuzz.Fault, match=r"took more than 0\.1 s"):
        fuzz.attempt(hang, b"", limit_s=0.1)


def test_an_input_follows_from_its_number():
    from random import Random

    seeds = (b'{"a": [1, 2, {"b": null}]}', bytes(range(256)))
    made = [fuzz.mutate(seeds, Random(f"x/{n}")) for n in range(300)]
    assert made == [fuzz.mutate(seeds, Random(f"x/{n}")) for n in range(300)]
    assert len(set(made)) > 250
