"""One DICOM file: what its pixels mean, how they are shown, where they lie, and what is left of the patient."""

import os

import numpy as np
import pytest

from segcore.errors import InputError
from segcore.medical.dicom.deidentify import deidentified, pseudonym
from segcore.medical.read import read_scan
from segcore.picture.preprocess import Window

pydicom = pytest.importorskip("pydicom")

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8)


def smooth(height=40, width=48, top=4095):
    y, x = np.mgrid[0:height, 0:width]
    return np.round((np.sin(x / 9) + np.cos(y / 7) + 2) / 4 * top).astype(np.uint16)


# --- values ---


@pytest.mark.parametrize(
    ("pixels", "tags", "expected"),
    [
        (RAMP.astype(np.uint8), {}, RAMP.astype(np.uint8)),
        (RAMP, {"bits": 12}, RAMP),
        (RAMP, {"bits": 8}, RAMP.astype(np.uint8)),
        (RAMP.astype(np.int16) - 20, {}, RAMP.astype(np.float32) - 20),
        (RAMP, {"RescaleSlope": 1, "RescaleIntercept": 0}, RAMP),
        (RAMP, {"RescaleSlope": 2, "RescaleIntercept": -1024}, RAMP.astype(np.float32) * 2 - 1024),
        (RAMP, {"RescaleSlope": 0, "RescaleIntercept": 0}, RAMP),  # some writers mean: none
        # an overlay's bits above the stored ones
        (RAMP | 0xF000, {"bits": 12}, RAMP),
        # turned over within the 12 bits stored, and after a rescale within the range that the bits reach
        (RAMP, {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"}, 4095 - RAMP),
        (
            RAMP.astype(np.int16),
            {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"},
            (-1 - RAMP.astype(np.float32)),
        ),
        (
            RAMP,
            {
                "bits": 12,
                "PhotometricInterpretation": "MONOCHROME1",
                "RescaleSlope": 2,
                "RescaleIntercept": -10,
            },
            (4095 - RAMP.astype(np.float32)) * 2 - 10,
        ),
    ],
)
def test_values(dicom_files, tmp_path, pixels, tags, expected):
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", pixels, **tags))
    assert scan.kind == "dicom"
    assert scan.size_px == (6, 8)
    np.testing.assert_array_equal(scan.values(0), expected)
    assert scan.values(0).dtype == expected.dtype


@pytest.mark.parametrize(
    "syntax",
    [
        "implicit",
        "explicit",
        "deflated",
        "big-endian",
        "jpeg-lossless",
        "jpeg-lossless-sv1",
        "jpeg-ls",
        "jpeg-2000",
        "rle",
    ],
)
def test_lossless_syntaxes_give_every_bit_back(dicom_files, tmp_path, syntax):
    grey, rgb = (
        smooth(),
        np.stack([smooth(top=255), smooth(top=200), smooth(top=90).T[:40, :].repeat(2, 1)[:, :48]], -1),
    )
    for name, pixels in (
        ("grey", grey),
        ("8 bit", (grey >> 4).astype(np.uint8)),
        ("rgb", rgb.astype(np.uint8)),
    ):
        bits = 12 if name == "grey" else 8
        path = dicom_files.make_dicom(tmp_path / f"{name}.dcm", pixels, syntax=syntax, bits=bits)
        np.testing.assert_array_equal(read_scan(path).values(0), pixels, err_msg=name)


def test_a_second_decoder_is_asked_before_a_file_is_damaged(dicom_files, tmp_path, monkeypatch):
    from segcore.medical.dicom import frames

    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", pixels, syntax="jpeg-2000"))
    assert scan.remarks() == ()
    decode, asked = frames._decoded_by, []

    def picky(name, *words):
        asked.append(name)
        if len(asked) == 1:
            raise ValueError("not for me")
        return decode(name, *words)

    monkeypatch.setattr(frames, "_decoded_by", picky)
    np.testing.assert_array_equal(scan.values(0), pixels)
    assert asked == ["pylibjpeg", "pillow"]
    assert scan.remarks() == ("pixels decoded by pillow, which pylibjpeg could not read",)
    monkeypatch.setattr(frames, "_decoded_by", lambda *_: int("nobody can"))
    with pytest.raises(InputError, match="is damaged"):
        scan.values(0)
    monkeypatch.setattr(frames, "_decoded_by", lambda *_: 1 / 0)  # a bug of ours is no damage
    with pytest.raises(ZeroDivisionError):
        scan.values(0)


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "jpeg-2000", "rle", "deflated", "big-endian"])
def test_frames_in_every_kind_of_syntax(dicom_files, tmp_path, syntax):
    frames = np.stack([smooth(), smooth()[::-1], smooth()[:, ::-1]])
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", frames, frames=True, syntax=syntax, bits=12))
    assert scan.slices == 3
    for i in (2, 0, 1):
        np.testing.assert_array_equal(scan.values(i), frames[i])


@pytest.mark.parametrize(
    ("syntax", "most"), [("jpeg-baseline", 3), ("jpeg-ls-near", 2), ("jpeg-2000-lossy", 20)]
)
def test_lossy_syntaxes_come_close(dicom_files, tmp_path, syntax, most):
    pixels = (smooth() >> 4).astype(np.uint8)
    read = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", pixels, syntax=syntax)).values(0)
    assert np.abs(read.astype(int) - pixels).max() <= most


def test_signed_values_survive_compression(dicom_files, tmp_path):
    pixels = smooth().astype(np.int16) - 2000
    for syntax in ("jpeg-2000", "jpeg-ls", "rle"):
        path = dicom_files.make_dicom(tmp_path / f"{syntax}.dcm", pixels, syntax=syntax, bits=13)
        np.testing.assert_array_equal(read_scan(path).values(0), pixels, err_msg=syntax)


def test_no_preamble_and_a_wrong_suffix(dicom_files, tmp_path):
    for syntax in ("implicit", "explicit"):
        path = dicom_files.make_dicom(tmp_path / f"{syntax}.png", RAMP, preamble=False, syntax=syntax)
        np.testing.assert_array_equal(read_scan(path).values(0), RAMP)


def test_a_file_that_changes_after_it_was_opened(dicom_files, tmp_path):
    path = dicom_files.make_dicom(tmp_path / "a.dcm", RAMP)
    scan = read_scan(path)
    stat = path.stat()
    dicom_files.make_dicom(path, RAMP)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    for gone in (False, True):
        if gone:
            path.unlink()
        with pytest.raises(InputError) as error:
            scan.values(0)
        assert str(error.value) == (
            f"DICOM {path}: must stay as it is while it is read, was changed; read it again"
        )


def ybr(rgb):
    """DICOM PS3.3, C.7.6.3.1.2."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    planes = [
        0.299 * r + 0.587 * g + 0.114 * b,
        -0.1687 * r - 0.3313 * g + 0.5 * b + 128,
        0.5 * r - 0.4187 * g - 0.0813 * b + 128,
    ]
    return np.clip(np.round(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def test_colours(dicom_files, tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = 200, 100, 30
    make = dicom_files.make_dicom
    np.testing.assert_array_equal(read_scan(make(tmp_path / "rgb.dcm", rgb)).values(0), rgb)
    planes = read_scan(
        make(tmp_path / "p.dcm", rgb.transpose(2, 0, 1).reshape(4, 6, 3), PlanarConfiguration=1)
    )
    np.testing.assert_array_equal(planes.values(0), rgb)
    full = read_scan(make(tmp_path / "ybr.dcm", ybr(rgb), PhotometricInterpretation="YBR_FULL"))
    assert np.abs(full.values(0).astype(int) - rgb).max() <= 2
    # Y Y Cb Cr for every two pixels
    half = ybr(rgb).reshape(-1, 2, 3)
    stored = np.stack([half[:, 0, 0], half[:, 1, 0], half[:, 0, 1], half[:, 0, 2]], -1).tobytes()
    path = make(tmp_path / "422.dcm", rgb, PhotometricInterpretation="YBR_FULL_422", PixelData=stored)
    assert np.abs(read_scan(path).values(0).astype(int) - rgb).max() <= 2
    np.testing.assert_array_equal(read_scan(path).display(0), read_scan(path).values(0))
    equal = np.repeat(RAMP.astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_scan(make(tmp_path / "e.dcm", equal)).values(0), RAMP)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(dicom_files, tmp_path, bits):
    tables = np.array([[10, 20, 30, 40], [0, 255, 0, 255], [7, 6, 5, 4]], np.uint16)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        entries = table.astype(np.uint8) if bits == 8 else table * 257
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    index = np.array([[0, 1], [2, 3]], np.uint8)
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", index, **tags))
    np.testing.assert_array_equal(scan.values(0), tables.T[index].astype(np.uint8))


# --- display ---


def ramp_scan(dicom_files, tmp_path, values, **tags):
    name = f"{len(list(tmp_path.iterdir()))}.dcm"  # read later: a new file each
    return read_scan(dicom_files.make_dicom(tmp_path / name, np.array([values]), **tags))


def test_linear_window_after_the_standard(dicom_files, tmp_path):
    # PS3.3 C.11.2.1.2.1, its own example: centre 2048, width 4096 shows 0 as black and 4095 as white.
    values = np.array([0, 1, 2047, 2048, 4095, 5000], np.uint16)
    scan = ramp_scan(dicom_files, tmp_path, values, WindowCenter=2048, WindowWidth=4096)
    assert scan.windows == (Window("file", 0.0, 4095.0),)
    assert scan.display(0).tolist() == [[0, 0, 127, 128, 255, 255]]


def test_exact_and_sigmoid_windows(dicom_files, tmp_path):
    values = np.array([0, 50, 100, 150, 200], np.uint16)
    tags = {"WindowCenter": 100, "WindowWidth": 100}
    exact = ramp_scan(dicom_files, tmp_path, values, **tags, VOILUTFunction="LINEAR_EXACT")
    assert exact.display(0).tolist() == [[0, 0, 128, 255, 255]]
    sigmoid = ramp_scan(dicom_files, tmp_path, values, **tags, VOILUTFunction="SIGMOID")
    expected = [round(255 / (1 + np.exp(-4 * (v - 100) / 100))) for v in (0, 50, 100, 150, 200)]
    assert sigmoid.display(0).tolist() == [expected]
    assert exact.windows == sigmoid.windows == (Window("file", 50.0, 150.0),)


def test_all_windows_with_their_names_the_default_first(dicom_files, tmp_path):
    tags = {
        "WindowCenter": [40, -600, 5],
        "WindowWidth": [401, 1501, 0],  # a width of 0 is none
        "WindowCenterWidthExplanation": [
            "SOFT TISSUE1",
            "MUSTERMANN ERIKA",
            "BAD",
        ],  # free text may hold a name
    }
    scan = ramp_scan(dicom_files, tmp_path, np.array([0, 1], np.int16), **tags)
    assert scan.windows == (Window("SOFT TISSUE1", -160.5, 239.5), Window("file 2", -1350.5, 149.5))


def test_windows_turn_over_with_the_values(dicom_files, tmp_path):
    """So that a window of the list shows MONOCHROME1 values just as the file's display does."""
    values = np.array([0, 1000, 1500, 2000, 4095], np.uint16)
    tags = {"bits": 12, "WindowCenter": 1500.5, "WindowWidth": 1001}
    plain = ramp_scan(dicom_files, tmp_path, values, **tags)
    turned = ramp_scan(dicom_files, tmp_path, values, **tags, PhotometricInterpretation="MONOCHROME1")
    window = turned.windows[0]
    assert window == Window("file", 4095 - 2000, 4095 - 1000)
    through = np.clip((turned.values(0).astype(float) - window.low) / (window.high - window.low), 0, 1) * 255
    np.testing.assert_array_equal(turned.display(0), np.round(through))
    assert np.abs(turned.display(0).astype(int) + plain.display(0) - 255).max() <= 1
    assert turned.display(0)[0, 0] == 255


def test_without_a_window(dicom_files, tmp_path):
    assert ramp_scan(dicom_files, tmp_path, np.array([3, 77], np.uint8)).display(0).tolist() == [[3, 77]]
    assert ramp_scan(dicom_files, tmp_path, np.array([100, 200, 300], np.uint16)).display(0).tolist() == [
        [0, 128, 255]
    ]
    flat = ramp_scan(dicom_files, tmp_path, np.array([100, 100], np.uint16))
    assert flat.display(0).tolist() == [[0, 0]]
    one = {"PhotometricInterpretation": "MONOCHROME1"}
    assert ramp_scan(dicom_files, tmp_path, np.array([3, 77], np.uint8), **one).display(0).tolist() == [
        [252, 178]
    ]


def test_voi_lut_goes_before_the_window(dicom_files, tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor = [4, 10, 8]
    table.LUTData = np.array([0, 100, 200, 255], np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    tags = {"VOILUTSequence": [table], "WindowCenter": 0, "WindowWidth": 5}
    values = np.array([0, 10, 11, 12, 13, 50], np.uint16)
    assert ramp_scan(dicom_files, tmp_path, values, **tags).display(0).tolist() == [
        [0, 0, 100, 200, 255, 255]
    ]
    turned = ramp_scan(dicom_files, tmp_path, values, **tags, PhotometricInterpretation="MONOCHROME1")
    assert turned.display(0).tolist() == [[255, 255, 155, 55, 0, 0]]


def test_modality_lut(dicom_files, tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.LUTData = np.array([1000, 2000, 4000, 8000], np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    scan = ramp_scan(dicom_files, tmp_path, np.array([0, 1, 2, 3], np.uint8), ModalityLUTSequence=[table])
    np.testing.assert_array_equal(scan.values(0), np.array([[1000, 2000, 4000, 8000]], np.float32))
    assert scan.display(0).tolist() == [[0, 36, 109, 255]]


# --- geometry ---


def region(delta_cm=0.05, units=3, shape=1):
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = shape, 1, 0
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta_cm, -2 * delta_cm
    return item


@pytest.mark.parametrize(
    ("tags", "spacing_mm"),
    [
        ({}, None),
        ({"PixelSpacing": [0.7, 0.5], "ImagerPixelSpacing": [9, 9]}, (0.7, 0.5)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.3, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5}, (0.2, 0.1)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"SequenceOfUltrasoundRegions": lambda: [region()]}, (1.0, 0.5)),
        ({"SequenceOfUltrasoundRegions": lambda: [region(), region()]}, (1.0, 0.5)),
        ({"SequenceOfUltrasoundRegions": lambda: [region(), region(0.1)]}, None),
        ({"SequenceOfUltrasoundRegions": lambda: [region(units=4)]}, None),  # seconds
        ({"SequenceOfUltrasoundRegions": lambda: [region(), region(shape=2)]}, None),  # with an M-mode
    ],
)
def test_spacing(dicom_files, tmp_path, tags, spacing_mm):
    tags = {key: value() if callable(value) else value for key, value in tags.items()}
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert scan.spacing_mm == pytest.approx(spacing_mm)


def test_affine_of_one_coronal_slice(dicom_files, tmp_path):
    scan = read_scan(
        dicom_files.make_dicom(
            tmp_path / "a.dcm",
            RAMP,
            PixelSpacing=[2, 3],
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
            ImagePositionPatient=[10, 20, 30],
        )
    )
    # column 1, row 2: 3 mm to the left, 4 mm down
    np.testing.assert_allclose(scan.affine @ [1, 2, 0, 1], [13, 20, 26, 1])
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 1, 0])  # the next slice would be behind: right-handed
    assert scan.slice_spacing_mm is None


def test_enhanced_frames_have_their_own_rescale_window_and_place(dicom_files, tmp_path):
    volume = np.stack([RAMP, RAMP, RAMP])
    path = dicom_files.make_enhanced(
        tmp_path / "e.dcm",
        volume,
        positions_mm=[(0, 0, 5), (0, 0, 8), (0, 0, 11)],
        rescales=[(1, 0), (2, 0), (1, -1000)],
        windows=[(24, 48), (48, 96), (-976, 48)],
    )
    scan = read_scan(path)
    assert (scan.slices, scan.spacing_mm, scan.slice_spacing_mm) == (3, (0.5, 0.5), 3.0)
    np.testing.assert_allclose(scan.affine @ [0, 0, 2, 1], [0, 0, 11, 1])
    for i, (slope, intercept) in enumerate([(1, 0), (2, 0), (1, -1000)]):
        np.testing.assert_array_equal(scan.values(i), RAMP.astype(np.float32) * slope + intercept)
        assert scan.values(i).dtype == np.float32  # the first, too, whose rescale is none
        assert scan.display(i).min() == 0
        assert scan.display(i).max() >= 252
    assert scan.windows == (Window("file", 0.0, 47.0),)
    assert len(scan.header) == 1
    assert "PixelData" not in scan.header[0]


def test_uneven_frames_have_no_volume(dicom_files, tmp_path):
    path = dicom_files.make_enhanced(
        tmp_path / "e.dcm", np.stack([RAMP] * 3), positions_mm=[(0, 0, 0), (0, 0, 3), (0, 0, 9)]
    )
    scan = read_scan(path)
    assert scan.spacing_mm == (0.5, 0.5)
    assert (scan.slice_spacing_mm, scan.affine) == (None, None)
    assert scan.uneven == "3 to 6 mm between neighbours"


def test_frames_are_put_in_the_order_of_their_places(dicom_files, tmp_path):
    volume = np.stack([RAMP + i for i in range(4)])
    order = [2, 0, 3, 1]  # the slice that each frame of the file is
    path = dicom_files.make_enhanced(
        tmp_path / "e.dcm", volume[order], positions_mm=[(0, 0, 3 * k) for k in order]
    )
    scan = read_scan(path)
    assert scan.frames == (1, 3, 0, 2)
    assert scan.slice_spacing_mm == 3.0
    for i in range(4):
        np.testing.assert_array_equal(scan.values(i), volume[i])
    np.testing.assert_allclose(scan.affine @ [0, 0, 3, 1], [0, 0, 9, 1])


def test_several_frames_at_a_place_stay_as_they_are_and_are_no_volume(dicom_files, tmp_path):
    """Times of a beating heart, echoes, directions of diffusion."""
    volume = np.stack([RAMP + i for i in range(6)])
    path = dicom_files.make_enhanced(
        tmp_path / "e.dcm", volume, positions_mm=[(0, 0, 3 * (i % 2)) for i in range(6)]
    )
    scan = read_scan(path)
    assert (scan.frames, scan.affine, scan.slice_spacing_mm) == ((), None, None)
    assert scan.uneven == "6 frames at 2 places"
    np.testing.assert_array_equal(scan.values(1), volume[1])


@pytest.mark.parametrize("value", [-2000, 63536])  # writers mistake the sign
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_takes_no_part_in_the_range_and_is_black(dicom_files, tmp_path, value, photometric):
    pixels = np.array([[-2000, 0, 50, 100, -2000]], np.int16)
    item = dicom_files.dicom(pixels, PhotometricInterpretation=photometric)
    item.add_new(0x00280120, "US" if value > 0 else "SS", value)
    item.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = read_scan(tmp_path / "a.dcm")
    expected = [0, 0, 128, 255, 0] if photometric == "MONOCHROME2" else [0, 255, 128, 0, 0]
    assert np.abs(scan.display(0)[0].astype(int) - expected).max() <= 1
    assert scan.display(0)[0, 0] == scan.display(0)[0, 4] == 0
    values = scan.values(0)[0]
    assert (
        values == (pixels[0] if photometric == "MONOCHROME2" else -1 - pixels[0])
    ).all()  # as pydicom gives them


def test_padding_may_be_a_range(dicom_files, tmp_path):
    pixels = np.array([0, 5, 9, 100, 200, 300], np.uint16)
    tags = {"PixelPaddingValue": 9, "PixelPaddingRangeLimit": 0}
    assert ramp_scan(dicom_files, tmp_path, pixels, **tags).display(0)[0].tolist() == [0, 0, 0, 0, 128, 255]
    only = ramp_scan(dicom_files, tmp_path, np.array([7, 7], np.uint16), PixelPaddingValue=7)
    assert only.display(0).tolist() == [[0, 0]]  # padding alone is a picture


# --- the patient ---


def test_pseudonym_is_the_same_for_one_patient_and_says_nothing():
    name = pseudonym("HOSP-4711", "19640812", "")
    assert name == "p-0b9e9b6479d2"  # golden: results of two versions must be comparable
    assert pseudonym(" HOSP-4711 ", "19640812", "") == name
    assert len({name, pseudonym("HOSP-4712", "19640812", ""), pseudonym("HOSP-4711", "19640813", "")}) == 3


def test_pseudonym_follows_the_key(monkeypatch):
    public = pseudonym("1", "", "")
    monkeypatch.setenv("SAM2EDGE_PSEUDONYM_KEY", "a secret")
    assert pseudonym("1", "", "") != public


def test_scan_names_no_patient(dicom_files, tmp_path):
    scan = read_scan(dicom_files.make_dicom(tmp_path / "a.dcm", RAMP))
    assert scan.patient == "p-0b9e9b6479d2"
    shown = repr(scan)
    assert not any(value in shown for value in dicom_files.PATIENT.values())
    assert read_scan(dicom_files.make_dicom(tmp_path / "b.dcm", RAMP, PatientID=None)).patient is None
    for told, known in (("MG", "MG"), ("CT", "CT"), ("MUSTERMANN", ""), ("Erika", "")):
        assert read_scan(dicom_files.make_dicom(tmp_path / "c.dcm", RAMP, Modality=told)).modality == known


def test_deidentified_header_keeps_geometry_and_no_identity(dicom_files, tmp_path):
    tags = {
        "Modality": "US",
        "PixelSpacing": [0.5, 0.5],
        "SequenceOfUltrasoundRegions": [region()],
        "StudyDescription": "follow-up of Erika",
    }
    path = dicom_files.make_dicom(tmp_path / "a.dcm", RAMP, **tags)
    whole = pydicom.dcmread(path)
    block = whole.private_block(0x0011, "ACME", create=True)
    block.add_new(1, "LO", "Mustermann")
    whole.save_as(path)
    plain, clean = read_scan(path), read_scan(path, deidentify=True)
    text = str(clean.header[0])
    for value in (*dicom_files.PATIENT.values(), "Erika", "ACME", "20240229", plain.header[0].SOPInstanceUID):
        assert value in str(plain.header[0])
        assert value not in text
    assert clean.header[0].PatientID == clean.header[0].PatientName == clean.patient == plain.patient
    assert clean.header[0].PixelSpacing == [0.5, 0.5]
    assert clean.header[0].SequenceOfUltrasoundRegions[0].PhysicalUnitsXDirection == 3
    np.testing.assert_array_equal(clean.values(0), plain.values(0))


def test_new_uids_keep_a_series_together(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", np.stack([RAMP, RAMP + 1]))
    first, second = (deidentified(pydicom.dcmread(path)) for path in paths)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SeriesInstanceUID.startswith("2.25.")
    assert first.SeriesInstanceUID.is_valid
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert pydicom.dcmread(paths[0]).SeriesInstanceUID != first.SeriesInstanceUID


def test_text_in_the_pixels_cannot_be_deidentified(dicom_files, tmp_path):
    path = dicom_files.make_dicom(tmp_path / "a.dcm", RAMP, BurnedInAnnotation="YES")
    assert read_scan(path).slices == 1
    with pytest.raises(InputError) as error:
        read_scan(path, deidentify=True)
    assert str(error.value) == (
        f"DICOM {path}: must hold no text in its pixels to be de-identified, got BurnedInAnnotation YES; cover the text first"
    )
