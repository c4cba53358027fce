"""What a stranger wrote into a manifest is text that is safe to print, in every field and at every depth."""

import pytest

from segcore.bundle.manifest import DataRecord, EngineTarget
from segcore.host import Made
from segcore.record import Record
from segcore.words import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("left lung", "left lung"),
        ("Lunge, größer – 左肺", "Lunge, größer – 左肺"),
        ("ریه\u200cها", "ریه\u200cها"),  # Persian is spelt with it
        ("10\u202fmm", "10\u202fmm"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\nb\0", r"a\r\nb\x00"),
        ("gnp.exe\u202e", r"gnp.exe\u202e"),
        ("\ud800", r"\ud800"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_every_text_of_a_record_is_printable():
    class Part(Record):
        text: str
        words: tuple[str, ...]
        settings: dict[str, object]

    part = Part(text="a\nb", words=("\x1b", "b"), settings={"\x1b": {"deep": ["\x07", 1, None]}})
    assert part.text == r"a\nb"
    assert part.words == (r"\x1b", "b")
    assert part.settings == {r"\x1b": {"deep": [r"\x07", 1, None]}}


def test_the_parts_of_a_manifest_are_records():
    made = Made(command="x \x1b[31m", time="", commit="", python="", host="", versions={"\x1b": "\x1b"})
    assert made.command == r"x \x1b[31m"
    assert made.versions == {r"\x1b": r"\x1b"}
    data = DataRecord(name="\x1b", sha256="", split_sha256="", calibration_cases=("a\nb",))
    assert (data.name, data.calibration_cases) == (r"\x1b", (r"a\nb",))
    target = EngineTarget(
        tensorrt="\x1b", gpu="", compute_capability="", platform="", onnx="", onnx_sha256=""
    )
    assert target.tensorrt == r"\x1b"
