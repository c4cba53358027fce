"""The boundary between a bad file and a bug: what is damage is one line, and what our own code raises stays what it is."""

import csv
import errno
import io
import json
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from segcore.bundle import golden
from segcore.errors import LONGEST_MESSAGE, GateError, InputError, one_line, passing_over_damage, reading
from segcore.image import read_image
from segcore.medical.dicom import file as dicom_file
from segcore.medical.dicom import pixels
from segcore.medical.read import read_scan
from segcore.text import read_json, read_yaml


def message(raises, **options):
    with pytest.raises(InputError) as caught, reading("model.pt", "a checkpoint", **options):
        raises()
    return str(caught.value)


@pytest.mark.parametrize(
    ("raises", "reason"),
    [
        (lambda: int("x"), "invalid literal for int() with base 10: 'x'"),
        (lambda: b"\xff".decode(), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (lambda: struct.unpack("<L", b"abc"), "unpack requires a buffer of 4 bytes"),
        (lambda: zlib.decompress(b"abc"), "Error -3 while decompressing data: incorrect header check"),
        (lambda: json.loads("{"), "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (lambda: list(csv.reader(io.StringIO("x" * 200_000))), "field larger than field limit (131072)"),
        (lambda: np.load(io.BytesIO(b"")), "No data left in file"),
        (lambda: torch.load(io.BytesIO(b""), weights_only=True), "EOFError"),  # which says nothing
        (lambda: golden.OutputSpec(activation="sigmoid", channels=0, stride=1), "channels: Input should be greater than 0"),
        (lambda: json.dumps({1, 2}), "Object of type set is not JSON serializable"),  # a TypeError of the library's
        (lambda: "x".join([]).encode().index(b"y"), "subsection not found"),
    ],
)  # fmt: skip
def test_what_content_raises_is_one_line(raises, reason):
    assert message(raises) == f"model.pt: must be a checkpoint, is damaged ({reason}); copy it again"
    assert message(raises, quoted=False, remedy="x") == "model.pt: must be a checkpoint, is damaged; x"


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        (lambda: 1 + "1", TypeError),
        (lambda: None.shape, AttributeError),
        (lambda: {}["a"], KeyError),
        (lambda: [][0], IndexError),
        (lambda: undefined, NameError),  # noqa: F821
        (lambda: 1 / 0, ZeroDivisionError),
        (lambda: json.loads(), TypeError),  # of the library, which is called wrongly
        (lambda: open("/no/such/file"), FileNotFoundError),  # noqa: PTH123, SIM115
        (lambda: bytearray(1 << 62), MemoryError),
    ],
)
def test_what_our_own_lines_raise_keeps_its_traceback(raises, kind):
    with pytest.raises(kind), reading("a", "b"):
        raises()
    with pytest.raises(kind), passing_over_damage():
        raises()


def test_a_disks_errors_say_nothing_of_the_content():
    for number in (errno.ENOSPC, errno.EACCES, errno.EIO):
        with pytest.raises(OSError, match="full"), reading("a", "b"):
            raise OSError(number, "full")
    for error in (InputError("a: must be b, is c"), GateError("d")):
        with pytest.raises(type(error), match=str(error)), reading("a", "b"):
            raise error


def planted(*_, **__):
    return 1 + "1"


def test_a_planted_bug_is_not_taken_for_a_damaged_file(tmp_path, dicom_files, monkeypatch):
    """In the middle of what reads a picture, a DICOM header, its pixels, its palette, and a golden file."""
    from PIL import Image

    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr("segcore.image._lossy_kind", planted)
    with pytest.raises(TypeError):
        read_image(tmp_path / "a.png")
    path = dicom_files.make_dicom(
        tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), PhotometricInterpretation="PALETTE COLOR"
    )
    monkeypatch.setattr(pixels, "_palette_table", planted)
    with pytest.raises(TypeError):
        read_scan(path).values(0)
    monkeypatch.setattr("segcore.medical.dicom.frames._installed_decoders", planted)
    with pytest.raises(TypeError):
        read_scan(path).values(0)
    monkeypatch.setattr(dicom_file, "_drop_malformed", planted)
    with pytest.raises(TypeError):
        read_scan(path)
    golden.save_golden(tmp_path, np.zeros((1, 4, 4, 1), np.uint8), np.zeros((1, 1, 2, 2)))
    monkeypatch.setattr(golden, "_MOST_BYTES", "many")
    with pytest.raises(TypeError):
        golden.load_golden(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("image a.png: must be b", "image a.png: must be b"),
        ("a\nb\x1b[2J\u202e\udcff", r"a\nb\x1b[2J\u202e\udcff"),
        ("Zähne × 3 − 2", "Zähne × 3 − 2"),
    ],
)
def test_a_message_is_one_printable_line(text, shown):
    assert str(InputError(text)) == str(GateError(text)) == one_line(text) == shown


@pytest.mark.parametrize("length", [499, 500, 501, 3000, 10**7])
@pytest.mark.parametrize("letter", ["x", "\0"])
def test_a_message_has_at_most_500_characters_and_keeps_what_to_do(length, letter):
    text = str(InputError(f"--data d: must be a, got {letter * length}; mend it"))
    assert len(text) <= LONGEST_MESSAGE
    assert text.isprintable()
    assert text.startswith("--data d: must be a, got ")
    assert text.endswith("; mend it")


def test_yaml_that_would_grow_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    names = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    for text in ("\n".join(lines), "a: &a [*a]", "a: " + "[" * 150 + "]" * 150):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_yaml(path, "--config F")
        assert str(caught.value) == (
            "--config F: must hold at most 100000 values, 100 levels deep, got more; write it without &names"
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 2001-02-31", "day is out of range for month"),
        ("a: !!timestamp x", "'NoneType' object has no attribute 'groupdict'"),
        ("a: !!python/object:os.system x", "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system', line 1"),
        ("? [a]\n: b\n? {}\n: c", "while constructing a mapping, line 1"),
        ("a: " + "9" * 5000, "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase t"),
    ],
)  # fmt: skip
def test_yaml_that_is_none(tmp_path, text, reason):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path, "--config F")
    assert str(caught.value) == f"--config F: must be YAML, is damaged ({reason[:120]}); mend that line"


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(
        InputError,
        match=r"^F: must be JSON, is damaged \(maximum recursion depth exceeded.*\); copy it again",
    ):
        read_json(path, "F")
