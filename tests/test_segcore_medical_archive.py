"""A ZIP from a stranger: unpacked whole, or an error and an empty folder."""

import struct
import zipfile

import pytest

from segcore.errors import InputError
from segcore.medical.archive import unpack


def pack(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def refused(path, folder, **limits):
    """The error's text; nothing may be left of what was unpacked before it."""
    with pytest.raises(InputError) as error:
        unpack(path, folder, **limits)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(InputError):
        unpack(path, folder, **limits)
    assert list(folder.iterdir()) == []
    assert {p.name for p in folder.parent.iterdir()} <= {path.name, folder.name}
    return str(error.value)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "a.zip", tmp_path / "out"


def test_unpacks_folders_and_names_of_any_script(place):
    path, folder = place
    files = {"ct/001.dcm": b"one", "ct/Röntgen.dcm": b"two", "胸.png": b"three", "empty": b""}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("ct")
        for name, content in files.items():
            archive.writestr(name, content)
    unpack(path, folder)
    assert {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == files


def test_names_that_are_not_utf_8(place):
    """What Windows packs in its own code page."""
    path, folder = place
    pack(path, [("R#ntgen.dcm", b"one")])
    path.write_bytes(path.read_bytes().replace(b"R#ntgen", b"R\x94ntgen"))
    unpack(path, folder)
    assert [p.name for p in folder.iterdir()] == ["Röntgen.dcm"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.png",
        "a/../../x.png",
        "/etc/x.png",
        "C:/x.png",
        "C:x.png",
        "..\\x.png",
        "\\\\host\\x.png",
        "a\n.png",
    ],
)
def test_names_that_lead_out(place, name):
    path, folder = place
    pack(path, [("good.png", b"1"), (name, b"2")])
    shown = name.replace("\n", "\\n")
    assert (
        refused(path, folder)
        == f"ZIP {path}: must hold names within its own folder, got {shown}; pack it again"
    )


def test_links_encryption_and_methods(place):
    path, folder = place
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    pack(path, [("good.png", b"1"), (link, b"/etc/passwd")])
    assert refused(path, folder) == (
        f"ZIP {path}: must hold files only, got the link link.png; pack what it points to"
    )
    folder.rmdir()
    raw = bytearray(pack(path, [("a.png", b"1")]).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert (
        refused(path, folder) == f"ZIP {path}: must not be encrypted, got a.png; pack it without a password"
    )
    folder.rmdir()
    raw = bytearray(pack(path, [("a.png", b"1")]).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 10] = 9
    path.write_bytes(raw)
    assert refused(path, folder) == (
        f"ZIP {path}: must be packed by deflate or stored, got method 9 for a.png; pack it again"
    )


@pytest.mark.parametrize(
    ("first", "second"), [("a.png", "a.png"), ("a.png", "A.PNG"), ("x/a.png", "x/./a.png")]
)
def test_a_name_twice(place, first, second):
    path, folder = place
    with pytest.warns() if first == second else pytest.MonkeyPatch.context():
        pack(path, [(first, b"1"), (second, b"2")])
    assert (
        refused(path, folder) == f"ZIP {path}: must hold every name once, got {second} twice; pack it again"
    )


@pytest.mark.parametrize(
    ("name", "content"), [("in.zip", b"1"), ("in.TAR.gz", b"1"), ("in.png", b"PK\x03\x04 zip")]
)
def test_archives_within(place, name, content):
    path, folder = place
    pack(path, [("good.png", b"1"), (name, content)])
    assert refused(path, folder) == f"ZIP {path}: must hold no archives, got {name}; unpack that first"


def test_limits(place):
    path, folder = place
    pack(path, [("a", b"1" * 600), ("b", b"2" * 600)])
    assert (
        refused(path, folder, max_bytes=1000)
        == f"ZIP {path}: must unpack to at most 1000 bytes, got 1200; split it"
    )
    folder.rmdir()
    assert refused(path, folder, max_files=1) == f"ZIP {path}: must hold at most 1 files, got 2; split it"
    folder.rmdir()
    pack(path, [])
    assert refused(path, folder) == f"ZIP {path}: must hold files, got none"


def test_a_bomb(place):
    path, folder = place
    pack(path, [("a.png", b"\0" * 40_000_000)], compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert refused(path, folder) == (
        f"ZIP {path}: must unpack to at most 200 times its size, got more; pack the files without compression if they are meant"
    )


def test_a_bomb_that_lies_about_its_size(place):
    """The table says 10 bytes; what comes out is counted, not believed."""
    path, folder = place
    pack(path, [("a.png", b"\0" * 3_000_000)], compression=zipfile.ZIP_DEFLATED)
    raw = path.read_bytes().replace(struct.pack("<L", 3_000_000), struct.pack("<L", 10))
    path.write_bytes(raw)
    assert refused(path, folder, max_bytes=1_000_000) == (
        f"ZIP {path}: must be a whole ZIP file, is damaged; pack it again"
    )


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-30], lambda raw: b"MZ", lambda raw: raw[:45] + b"\xff" + raw[46:]]
)
def test_damaged(place, damage):
    path, folder = place
    pack(path, [("a.png", bytes(range(200)))])
    path.write_bytes(damage(path.read_bytes()))
    assert refused(path, folder) == f"ZIP {path}: must be a whole ZIP file, is damaged; pack it again"


def test_a_folder_with_files_is_left_alone(place):
    path, folder = place
    pack(path, [("a.png", b"1")])
    folder.mkdir()
    (folder / "mine").write_text("keep")
    with pytest.raises(InputError) as error:
        unpack(path, folder)
    assert str(error.value) == f"folder {folder}: must be empty to unpack into, is not; give another"
    assert (folder / "mine").read_text() == "keep"
