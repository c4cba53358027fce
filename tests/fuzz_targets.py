"""The readers of bytes from outside, each as a function of bytes that may raise `InputError` and nothing else.

A target is made in a folder of its own, which also holds what it writes. Its seeds are valid files, made here; `fuzz.py`
damages them. A container whose checksum hides its content from damage has two targets: one for the file and one whose
content is damaged first and then packed.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import yaml
from PIL import Image

from segcore.errors import InputError


class Unfit(Exception):
    """What was damaged makes no input: no manifest can hold it, for one."""


@dataclass(frozen=True)
class Target:
    """A reader, and valid files to damage."""

    seeds: tuple[bytes, ...]
    read: Callable[[bytes], Any]


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of_file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """A reader of a file as one of bytes."""

    def run(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return run


def _grey(height: int = 9, width: int = 7) -> np.ndarray:
    return (np.arange(height * width, dtype=np.uint8) * 3).reshape(height, width)


# --- text: settings, tables, lists ---

_YAML = (
    b"epochs: 3\nsize: 64\nlr: 0.001\nchannels: 1\ndata: phantom:cxr:24\nout: runs/x\n",
    b"design: {stem: strided, stem_stride: 4, widths: [16, 32], depths: [1, 1], up_depths: [1]}\ndata: d\nout: o\n",
    b"a: &x [1, 2]\nb: *x\nc: 2001-01-01\nd: !!str 3\ne: 0o17\nf: 1e3\ng: .inf\nh: ~\n? [k]\n: v\n",
    b"\xef\xbb\xbfdata: d\n",
    "data: ü\n".encode("utf-16"),
    b"data: {" + b"a: {" * 30 + b"}" * 31,
    b"data: !!binary aGVsbG8=\nout: !!set {a, b}\nseed: !!timestamp 2001-01-01\n",
)


def _settings(folder: Path) -> Target:
    from runtime.predict.__main__ import PredictSettings
    from segcore.command import parse_settings, read_config
    from student.distill import DistillSettings

    kinds = (DistillSettings, PredictSettings)

    def read(path: Path) -> None:
        values = read_config(path)
        kind = kinds[len(values) % 2]
        parse_settings(kind, "fuzz", ["--config", str(path)])

    return Target(_YAML, _of_file(folder / "config.yaml", read))


def _yaml_alone(folder: Path) -> Target:
    from segcore.command import read_config

    return Target(_YAML, _of_file(folder / "config.yaml", read_config))


def _augmentation(folder: Path) -> Target:
    from segcore.learn.transforms import read_augment

    seeds = (
        b"- rotate: {degrees: 45, probability: 0.8}\n- flip\n- gamma: {low: 0.7, high: 1.5}\n",
        b'[{"rotate": {"degrees": 45, "probability": 0.8}}]',
    )
    return Target(seeds, _of_file(folder / "a.yaml", read_augment))


def _design(folder: Path) -> Target:
    from student.design import PRESETS, find_design
    from student.network import build_student

    seeds = [json.dumps(design.model_dump(mode="json")).encode() for design in PRESETS.values()]
    seeds += [yaml.safe_dump({"design": PRESETS["nano"].model_dump(mode="json")}).encode()]

    def read(path: Path) -> None:
        design = find_design(str(path))
        import torch

        with torch.device("meta"):
            build_student(design, channels=1, outputs=1)

    return Target(tuple(seeds), _of_file(folder / "d.yaml", read))


def _index(folder: Path) -> Target:
    from segcore.dataset.listing import list_data

    for name in ("a.png", "b.png", "m.png"):
        Image.fromarray(_grey()).save(folder / name)
    seeds = (
        b"case,patient,image,mask,split,spacing_row_mm,spacing_col_mm\na,p,a.png,m.png,train,0.5,0.5\nb,q,b.png,,test,,\n",
        "sep=;\ncase;image\nä;a.png\nb;b.png\n".encode("utf-16"),
        b'case\timage\n"a\nb"\ta.png\n',
    )

    def read(path: Path) -> None:
        for _, problem in list_data(str(path)).problems:
            raise InputError(problem)

    return Target(seeds, _of_file(folder / "index.csv", read))


def _classes(folder: Path) -> Target:
    from segcore.dataset.listing import list_data

    (folder / "images").mkdir()
    Image.fromarray(_grey()).save(folder / "images" / "a.png")
    seeds = (b"lung\nheart\n", "Zähne\nlesion".encode("utf-16"), b"\n".join(b"c%d" % n for n in range(32)))
    return Target(seeds, _of_file(folder / "classes.txt", lambda path: list_data(str(folder))))


def _list_of(suffix: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        from runtime.predict.inputs import inputs_sha256, list_inputs

        seeds = (b"image,case\na.png,x\nsub/b.png,y/z\n", b"a.png\nsub\\b.png\n/c/d.png\n", b"image\na.png\n")
        return Target(
            seeds, _of_file(folder / f"l{suffix}", lambda path: inputs_sha256(list_inputs(path).inputs))
        )

    return make


# --- pictures ---


def _picture_seeds(form: str) -> tuple[bytes, ...]:
    grey, colour = (
        Image.fromarray(_grey()),
        Image.fromarray(np.stack([_grey(), _grey() + 1, _grey() + 2], -1)),
    )
    palette = grey.convert("P")
    deep = Image.fromarray(_grey().astype(np.uint16) * 200)
    black = grey.convert("1")
    exif = Image.Exif()
    exif[274] = 6
    chosen: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(grey, {}), (colour, {"exif": exif}), (palette, {"transparency": 3}), (deep, {}), (black, {})],
        "JPEG": [(grey, {}), (colour, {"exif": exif}), (colour, {"progressive": True})],
        "TIFF": [
            (grey, {}), (colour, {"compression": "tiff_lzw"}), (deep, {"compression": "tiff_deflate"}), (palette, {}),
            (black, {"compression": "group4"}), (Image.fromarray(_grey().astype(np.float32)), {}),
            (colour, {"compression": "jpeg"}), (grey, {"compression": "packbits"}),
        ],
        "BMP": [(grey, {}), (colour, {}), (palette, {}), (black, {})],
        "GIF": [(grey, {}), (palette, {"transparency": 3}), (colour, {})],
        "WEBP": [(grey, {}), (colour, {"lossless": True}), (colour, {"exif": exif})],
        "PPM": [(grey, {}), (colour, {}), (black, {}), (deep, {})],
    }  # fmt: skip
    seeds = []
    for picture, options in chosen[form]:
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        seeds.append(stream.getvalue())
    if form == "PPM":
        seeds += [b"P2\n3 2\n15\n0 1 2\n3 4 5\n", b"P1\n# x\n2 2\n0 1 1 0\n", b"P3 1 1 255 1 2 3\n"]
    return tuple(seeds)


def _pictures(form: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        from segcore.image import image_size, read_image, read_mask

        def read(path: Path) -> None:
            problems = 0
            for reader in (image_size, read_image, read_mask):
                try:
                    reader(path)
                except InputError as error:
                    problems += 1
                    last = error
            if problems:
                raise last

        return Target(_picture_seeds(form), _of_file(folder / f"x.{form.lower()}", read))

    return make


# --- scans ---


def _read_all(path: Path) -> None:
    """Everything that a prediction or a training asks of a scan."""
    from segcore.medical.read import read_scan

    scan = read_scan(path)
    for index in range(min(scan.slices, 3)):
        scan.values(index)
        scan.display(index)
        scan.padding(index)
    scan.remarks()


def _nifti_seeds() -> tuple[bytes, ...]:
    import nibabel

    affine = np.array([[0.5, 0, 0, 3], [0, -0.6, 0, 2], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    volume = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    seeds = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for values in (
            volume,
            volume.astype(np.uint8),
            volume[..., 0].astype(np.float32),
            volume.astype(np.float64),
        ):
            image = kind(values, affine)
            image.header.set_xyzt_units("mm")
            seeds.append(image.to_bytes())
    return tuple(seeds)


def _nifti(folder: Path) -> Target:
    return Target(_nifti_seeds(), _of_file(folder / "x.nii", _read_all))


def _nifti_packed(folder: Path) -> Target:
    seeds = tuple(gzip.compress(seed, mtime=0) for seed in _nifti_seeds())
    return Target(seeds, _of_file(folder / "x.nii.gz", _read_all))


def _nifti_mask(folder: Path) -> Target:
    import nibabel

    from segcore.medical.mask_files import read_mask_file
    from segcore.medical.read import read_scan

    seeds = _nifti_seeds()
    (folder / "scan.nii").write_bytes(seeds[1])
    scan, mask = read_scan(folder / "scan.nii"), nibabel.Nifti1Image.from_bytes(seeds[1])
    own = (
        nibabel.Nifti1Image((np.asarray(mask.dataobj) % 3).astype(np.uint8), mask.affine).to_bytes(),
        *seeds,
    )
    read = _of_file(folder / "m.nii.gz", lambda path: read_mask_file(path, scan))
    return Target(own, lambda data: read(gzip.compress(data, 1)))


def _dicom_bytes(folder: Path, pixels: np.ndarray, **tags: Any) -> bytes:
    return bytes(_beside("dicom_files").make_dicom(folder / "seed.dcm", pixels, **tags).read_bytes())


_CT: dict[str, Any] = {
    "Modality": "CT", "PixelSpacing": [0.5, 0.5], "SliceThickness": 2.0, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "ImagePositionPatient": [1, 2, 3], "RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, 300],
    "WindowWidth": [400, 1500],
}  # fmt: skip


def _dicom(folder: Path) -> Target:
    deep = _grey().astype(np.uint16) * 9
    seeds = [
        _dicom_bytes(folder, deep, **_CT),
        _dicom_bytes(folder, _grey(), Modality="CR", PhotometricInterpretation="MONOCHROME1"),
        _dicom_bytes(folder, np.stack([_grey()] * 3, -1), syntax="implicit", Modality="US"),
        _dicom_bytes(folder, deep.astype(np.int16), syntax="big-endian", PixelPaddingValue=0),
        _dicom_bytes(folder, deep, preamble=False, syntax="implicit"),
        _dicom_bytes(folder, _grey(), syntax="deflated"),
    ]
    table = _beside("dicom_files").dicom(_grey(), PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(table, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(table, f"{name}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())
    table.save_as(folder / "p.dcm", enforce_file_format=True)
    return Target((*seeds, (folder / "p.dcm").read_bytes()), _of_file(folder / "x.dcm", _read_all))


def _dicom_frames(folder: Path) -> Target:
    files = _beside("dicom_files")
    volume = np.stack([_grey().astype(np.uint16) + n for n in range(3)])
    enhanced = files.make_enhanced(
        folder / "e.dcm", volume, positions_mm=[(0, 0, 2.0 * n) for n in range(3)],
        rescales=[(1.0, -10.0 * n) for n in range(3)], windows=[(40, 80)] * 3,
    )  # fmt: skip
    plain = _dicom_bytes(folder, volume, frames=True, Modality="XA")
    return Target((enhanced.read_bytes(), plain), _of_file(folder / "x.dcm", _read_all))


def _dicom_packed(*syntaxes: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        seeds = tuple(_dicom_bytes(folder, _grey(64, 64), syntax=syntax) for syntax in syntaxes)
        return Target(seeds, _of_file(folder / "x.dcm", _read_all))

    return make


def _dicom_tags(folder: Path) -> Target:
    """A header whose values are anything that pydicom writes: JSON of keyword → value."""
    files = _beside("dicom_files")
    known = dict(_CT)
    known |= {
        "NumberOfFrames": 1, "Rows": 9, "Columns": 7, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "PatientID": "x", "StudyDate": "20200101", "PatientSex": "F", "PatientAge": "040Y", "InstanceNumber": 3,
        "SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5", "VOILUTFunction": "LINEAR",
        "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "FrameOfReferenceUID": "1.2.6",
    }  # fmt: skip
    read = _of_file(folder / "x.dcm", lambda path: _write_seg(path, folder))

    def run(data: bytes) -> None:
        try:
            tags = json.loads(data)
            stream = io.BytesIO()
            item = files.dicom(_grey())
            for keyword, value in tags.items():
                with suppress(Exception):  # what pydicom does not take; the rest goes into the file
                    setattr(item, keyword, value)
            item.save_as(stream, enforce_file_format=True)
        except Exception:
            raise Unfit from None
        read(stream.getvalue())

    return Target((json.dumps(known).encode(),), run)


def _write_seg(path: Path, folder: Path) -> None:
    """A mask of the scan, written as every format."""
    from segcore.medical.mask_files import MASK_FORMATS, write_masks
    from segcore.medical.read import read_scan

    scan = read_scan(path)
    if scan.slices > 4 or scan.size_px[0] * scan.size_px[1] > 10_000:
        return
    masks = np.zeros((scan.slices, *scan.size_px), np.uint8)
    masks[:, ::2] = 1
    for index in range(scan.slices):
        scan.values(index)
    written = write_masks(folder, "mask", scan, masks, _manifest(), MASK_FORMATS)
    for message in written.failed.values():
        if "please report it" in message:
            raise AssertionError(message)


def _seg_of_damaged(folder: Path) -> Target:
    found = _dicom(folder)
    return Target(found.seeds, _of_file(folder / "x.dcm", lambda path: _write_seg(path, folder)))


def _seg(folder: Path) -> Target:
    """Segmentations that refer to a scan, damaged, and read back onto it."""
    from segcore.medical.mask_files import read_mask_file, write_masks
    from segcore.medical.read import read_scan

    seeds, scans = [], []
    for number, source in enumerate((_dicom(folder).seeds[0], _dicom_frames(folder).seeds[0])):
        (folder / f"s{number}.dcm").write_bytes(source)
        scan = read_scan(folder / f"s{number}.dcm")
        masks = np.zeros((scan.slices, *scan.size_px), np.uint8)
        masks[:, 2:5, 2:5] = 1
        write_masks(folder, f"m{number}", scan, masks, _manifest(), ["dicom-seg"])
        seeds.append((folder / f"m{number}.dcm").read_bytes())
        scans.append(scan)

    def read(path: Path) -> None:
        for scan in scans:
            try:
                read_mask_file(path, scan)
            except InputError as error:
                last = error
        raise last  # one of the two scans is always the wrong one

    return Target(tuple(seeds), _of_file(folder / "x.dcm", read))


def _series_folder(folder: Path) -> Target:
    """A folder of three slices, of which one is damaged."""
    from segcore.medical.read import find_scans, read_scan

    files = _beside("dicom_files")
    volume = np.stack([_grey().astype(np.uint16) + n for n in range(3)])
    paths = files.make_series(folder / "series", volume)

    def read(path: Path) -> None:
        for scan in find_scans(path.parent).scans:
            with suppress(InputError):
                read_scan(scan).values(0)
        read_scan(path.parent)

    return Target((paths[1].read_bytes(),), _of_file(paths[1], read))


def _archive(folder: Path) -> Target:
    import shutil

    from segcore.medical.archive import unpack

    def packed(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return stream.getvalue()

    plain = packed(("a/b.dcm", b"x" * 300), ("c.png", bytes(range(256))))
    disks = bytearray(plain)
    end = disks.rindex(b"PK\5\6")
    disks[end + 4 : end + 8] = b"\1\0\1\0"
    seeds = (
        plain,
        bytes(disks),
        packed(("a.bin", bytes(3_000_000))),
        packed(("a.dcm", plain)),
        packed(("a", b"1"), method=zipfile.ZIP_STORED),
        packed(("a", b"1" * 99), method=zipfile.ZIP_BZIP2),
        packed(("a", b"1" * 99), method=zipfile.ZIP_LZMA),
    )

    def read(path: Path) -> None:
        out = folder / "out"
        try:
            unpack(path, out, max_bytes=2**22, max_files=50)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    return Target(seeds, _of_file(folder / "x.zip", read))


# --- what our own stages wrote, and somebody damaged ---


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


_GOLDEN = {
    "inputs": np.zeros((2, 4, 4, 1), np.uint8), "logits": np.ones((2, 1, 2, 2), np.float32),
    "pictures": np.zeros((2, 6, 5), np.uint8), "masks": np.ones((2, 6, 5), np.uint8), "digest": np.array("ab"),
}  # fmt: skip
_PROMPTS = {
    "pictures": np.zeros((2, 4, 4, 1), np.uint8), "points": np.zeros((2, 3, 2), np.float32), "again": np.array(True),
    "labels": np.zeros((2, 3), np.float32), "logits": np.ones((2, 2, 1, 2, 2), np.float32),
    "iou": np.ones((2, 2, 1), np.float32),
}  # fmt: skip


def _read_golden(folder: Path) -> Callable[[bytes], None]:
    from segcore.bundle.golden import GOLDEN_FILE, load_golden, load_whole_way

    def read(path: Path) -> None:
        try:
            load_golden(folder)
        finally:
            load_whole_way(folder)

    return _of_file(folder / GOLDEN_FILE, read)


def _golden(folder: Path) -> Target:
    return Target((_npz(**_GOLDEN),), _read_golden(folder))


def _golden_prompts(folder: Path) -> Target:
    from segcore.bundle.golden import GOLDEN_PROMPTS, load_golden_prompts

    return Target(
        (_npz(**_PROMPTS),), _of_file(folder / GOLDEN_PROMPTS, lambda path: load_golden_prompts(folder))
    )


def _shared(one: bytes, other: bytes) -> int:
    """How many first bytes are equal."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _golden_members(folder: Path) -> Target:
    """An array's own bytes damaged, and then packed with a right checksum."""
    read, whole = _read_golden(folder), {}
    for name, array in _GOLDEN.items():
        stream = io.BytesIO()
        np.save(stream, array)
        whole[name] = stream.getvalue()

    def run(data: bytes) -> None:
        # The one that it was: their headers differ.
        one = max(whole, key=lambda name: _shared(whole[name], data))
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in whole.items():
                archive.writestr(f"{name}.npy", data if name == one else content)
        read(stream.getvalue())

    return Target(tuple(whole.values()), run)


def _manifest(**other: Any) -> Any:
    from segcore.bundle.manifest import DataRecord, FileEntry, Manifest
    from segcore.host import made_now
    from segcore.picture.preprocess import InputSpec, output_spec

    fields: dict[str, Any] = {
        "name": "Small", "kind": "student", "format": "torch", "precision": "fp32", "architecture": "student",
        "architecture_settings": {}, "classes": ("lung",), "output": output_spec(("lung",), 1),
        "input": InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,)),
        "parameters": 1, "trained_parameters": 1, "macs": 1, "pretrained": "no pretrained weights",
        "data": DataRecord(name="phantom:cxr", sha256="0" * 64, split_sha256="1" * 64),
        "made": made_now(),
        "model_file": "model.safetensors",
        "files": {"model.safetensors": FileEntry(sha256=hashlib.sha256(b"x").hexdigest(), bytes=1)},
    }  # fmt: skip
    return Manifest(**{**fields, **other})


def _manifest_file(folder: Path) -> Target:
    from segcore.bundle.folder import open_bundle
    from segcore.bundle.story import model_card

    (folder / "model.safetensors").write_bytes(b"x")

    def read(path: Path) -> None:
        model_card(open_bundle(folder).manifest)

    return Target((_manifest().model_dump_json().encode(),), _of_file(folder / "manifest.json", read))


def _sealed(folder: Path, **fields: Any) -> None:
    """A manifest that is right about the files, as a stranger would write it, too."""
    from segcore.bundle.folder import hash_file

    files = {"model.safetensors": hash_file(folder / "model.safetensors")}
    (folder / "manifest.json").write_text(_manifest(files=files, **fields).model_dump_json())


def _tiny_student() -> tuple[Any, Any]:
    from student.design import Design
    from student.network import build_student

    design = Design(stem="strided", stem_stride=2, widths=(2, 2), depths=(1, 1), up_depths=(1,))
    return design, build_student(design, channels=1, outputs=1)


def _student_weights(folder: Path) -> Target:
    from safetensors.torch import save

    from segcore.bundle.folder import open_bundle
    from student.network import load_student

    design, network = _tiny_student()
    settings = design.model_dump(mode="json")

    def read(path: Path) -> None:
        _sealed(folder, architecture_settings=settings)
        load_student(open_bundle(folder))

    return Target((save(network.state_dict()),), _of_file(folder / "model.safetensors", read))


def _student_settings(folder: Path) -> Target:
    from safetensors.torch import save

    from segcore.bundle.folder import open_bundle
    from student.network import load_student

    design, network = _tiny_student()
    (folder / "model.safetensors").write_bytes(save(network.state_dict()))

    def run(data: bytes) -> None:
        try:
            settings = json.loads(data)
            architecture = settings.pop("architecture", "student")
            _sealed(folder, architecture_settings=settings, architecture=architecture)
        except Exception:
            raise Unfit from None
        load_student(open_bundle(folder))

    seeds = (design.model_dump(mode="json"), {"architecture": "unet", "base": 8})
    return Target(tuple(json.dumps(seed).encode() for seed in seeds), run)


def _teacher_settings(folder: Path) -> Target:
    from safetensors.torch import save

    from segcore.bundle.folder import open_bundle
    from teacher.system import load_teacher

    (folder / "model.safetensors").write_bytes(save(_tiny_student()[1].state_dict()))

    def run(data: bytes) -> None:
        try:
            settings = json.loads(data)
            _sealed(
                folder,
                kind="teacher",
                architecture=settings.pop("architecture"),
                architecture_settings=settings,
            )
        except Exception:
            raise Unfit from None
        load_teacher(open_bundle(folder))

    seeds = ({"architecture": "unet", "base": 2}, {"architecture": "unet16", "base": 16})
    return Target(tuple(json.dumps(seed).encode() for seed in seeds), run)


class _Encoder:
    """Made late, because torch is."""

    def __new__(cls) -> Any:
        from torch import nn

        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def _adapters(folder: Path) -> Target:
    """A bundle's adapter/: the configuration and the tensors, one damaged after the other."""
    import torch
    from safetensors.torch import save

    from teacher.tuning.adapter_folder import CONFIG, TENSORS, load_adapters

    tensors = save({"0.bias": torch.zeros(3), "1.bias": torch.zeros(2)})
    config = json.dumps({"kind": "bitfit", "width": None}).encode()
    peft = json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["0"], "lora_alpha": 2}).encode()

    def run(data: bytes) -> None:
        first = data[:1] == b"{"
        (folder / CONFIG).write_bytes(data if first else config)
        (folder / TENSORS).write_bytes(tensors if first else data)
        load_adapters(_Encoder(), folder)

    adapter = json.dumps({"kind": "adapter", "width": 4}).encode()
    return Target((config, tensors, peft, adapter), run)


def _checkpoint(suffix: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        import torch
        from safetensors.torch import save

        from teacher.encoders.package_weights import check_state, read_tensors

        state = {"a.weight": torch.zeros(2, 3), "b": torch.ones(4)}
        stream = io.BytesIO()
        torch.save({"model": state}, stream)
        old = io.BytesIO()
        torch.save(state, old, _use_new_zipfile_serialization=False)
        seeds = (save(state),) if suffix == ".safetensors" else (stream.getvalue(), old.getvalue())

        def read(path: Path) -> None:
            check_state(read_tensors(path), state, str(path), "a model")

        return Target(seeds, _of_file(folder / f"x{suffix}", read))

    return make


def _training(folder: Path) -> Target:
    """last.pt of a training that is resumed."""
    import torch
    from torch import nn

    from segcore.learn import loop

    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    accelerator: Any = SimpleNamespace(num_processes=1)
    run = loop.Run(network, network, optimizer, None, lambda *_: torch.zeros(()), accelerator)
    history = [loop.Epoch(1, 0.5, 0.9, 1e-3, 1.0, 1.0)]
    loop._save_run(
        folder, run, history, loop.EpochPart(2, (0.5,), (1e-3,), 1.0, {"cpu": torch.get_rng_state()})
    )
    seeds = [(folder / loop._LAST).read_bytes()]
    loop._save_run(folder, run, history, loop.EpochPart())
    seeds.append((folder / loop._LAST).read_bytes())

    def read(path: Path) -> None:
        with open(os.devnull, "w") as quiet:  # noqa: PTH123
            before, sys.stderr = sys.stderr, quiet
            try:
                own = copy.deepcopy(network)
                loop._resume_run(
                    folder,
                    loop.Run(own, own, torch.optim.AdamW(own.parameters()), None, run.loss_of, accelerator),
                )
            finally:
                sys.stderr = before

    return Target(tuple(seeds), _of_file(folder / loop._LAST, read))


def _training_steps(folder: Path) -> Target:
    from segcore.learn import loop

    seeds = (b"epoch,step,loss,lr\r\n1,1,0.5,0.001\r\n1,2,0.4,0.001\r\n",)
    return Target(seeds, _of_file(folder / loop.STEPS, lambda path: loop._read_steps(folder)))


def _soft_record() -> Any:
    from segcore.dataset.soft_labels import LabelRecord
    from segcore.host import made_now

    return LabelRecord(
        teacher="0" * 64, teacher_name="t", data_sha256="1" * 64, split_sha256="2" * 64, classes=("lung",),
        activation="sigmoid", height_px=4, width_px=4, shards={"shard-00-00000.npy": ("a", "b")}, made=made_now(),
    )  # fmt: skip


def _shard() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 1, 4, 4), np.float16))
    return stream.getvalue()


def _soft_labels(folder: Path) -> Target:
    from segcore.dataset.soft_labels import LABELS, open_soft_labels

    (folder / "shard-00-00000.npy").write_bytes(_shard())

    def read(path: Path) -> None:
        labels = open_soft_labels(folder)
        for case in labels._place:
            labels.of(case)

    return Target((_soft_record().model_dump_json().encode(),), _of_file(folder / LABELS, read))


def _soft_shard(folder: Path) -> Target:
    from segcore.dataset.soft_labels import LABELS, open_soft_labels

    (folder / LABELS).write_text(_soft_record().model_dump_json())

    def read(path: Path) -> None:
        labels = open_soft_labels(folder)
        np.asarray(labels.of("b")).sum()

    return Target((_shard(),), _of_file(folder / "shard-00-00000.npy", read))


def _soft_list(folder: Path) -> Target:
    from segcore.dataset.soft_labels import finished_shards

    return Target(
        (b'["a", "b-s001"]',),
        _of_file(folder / "shard-00-00000.npy.json", lambda path: finished_shards(folder)),
    )


def _records(folder: Path) -> Target:
    from runtime.predict.write import PREDICTIONS_FILE, open_records, read_records

    line = {
        "case": "a",
        "mask": "masks/a.png",
        "files": {},
        "area_px": {"lung": 3},
        "quality": 0.9,
        "engine_ms": 1.5,
    }
    seeds = (json.dumps(line).encode() + b"\n" + json.dumps({"case": "b", "error": "x"}).encode() + b"\n",)

    def read(path: Path) -> None:
        with open_records(folder):
            pass
        list(read_records(folder))

    return Target(seeds, _of_file(folder / PREDICTIONS_FILE, read))


def _device_report(folder: Path) -> Target:
    from benchmarks.report.devices import device_tables
    from runtime.device.report import read_report

    report = _beside("test_runtime_device").device_report()
    return Target(
        (report.to_json().encode(),),
        _of_file(folder / "r.json", lambda path: device_tables([], [read_report(path)])),
    )


def _stored_settings(folder: Path) -> Target:
    """settings.json of an OUT.partial, which is taken up again."""
    from segcore.outfolder import out_folder

    partial = folder / "out.partial"

    def run(data: bytes) -> None:
        import shutil

        shutil.rmtree(folder / "out", ignore_errors=True)
        partial.mkdir(exist_ok=True)
        (partial / "settings.json").write_bytes(data)
        with out_folder(folder / "out", {"a": 1, "b": [1, 2]}):
            pass

    return Target((b'{"a": 1, "b": [1, 2]}',), run)


def _cache_rows(folder: Path) -> Target:
    from segcore.cache import RowFile

    (folder / "entry").mkdir()
    RowFile(folder / "entry", 3, 4, np.float32).write(1, np.ones(4, np.float32))
    path = next(p for p in (folder / "entry").iterdir() if p.stat().st_size > 150)
    seed = path.read_bytes()

    def read(path: Path) -> None:
        rows = RowFile(folder / "entry", 3, 4, np.float32)
        for number in range(3):
            rows.holds(number)

    return Target((seed,), _of_file(path, read))


# --- graphs ---


def _graph() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    def of(name: str, array: np.ndarray) -> Any:
        return numpy_helper.from_array(array, name)

    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2], name="transpose"),
        helper.make_node("QuantizeLinear", ["t", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("Conv", ["d", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Resize", ["r", "", "scales"], ["u"], mode="nearest", name="resize"),
        helper.make_node("MaxPool", ["u"], ["logits"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
    ]
    weights = [
        of("s", np.float32(0.1)), of("z", np.int8(0)), of("w", np.ones((1, 1, 3, 3), np.float32)),
        of("b", np.zeros(1, np.float32)), of("scales", np.array([1, 1, 2, 2], np.float32)),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, 8, 8])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _onnx_rules(folder: Path) -> Target:
    from export.check import OnnxCheckSettings, main

    def read(path: Path) -> None:
        with open(os.devnull, "w") as quiet:  # noqa: PTH123
            before, sys.stdout = sys.stdout, quiet
            try:
                main(OnnxCheckSettings(onnx=path, tensorrt=("10.3", "8.6")))
            finally:
                sys.stdout = before

    return Target((_graph().SerializeToString(),), _of_file(folder / "x.onnx", read))


def _onnx_structure(folder: Path) -> Target:
    """A graph whose nodes, types, shapes and weights are changed one by one, so that it still parses."""
    import onnx
    from google.protobuf import json_format

    read = _onnx_rules(folder).read

    def run(data: bytes) -> None:
        try:
            content = json_format.Parse(
                data, onnx.ModelProto(), ignore_unknown_fields=True
            ).SerializeToString()
        except Exception:
            raise Unfit from None
        read(content)

    return Target((json_format.MessageToJson(_graph(), indent=None).encode(),), run)


def _engine_layers(folder: Path) -> Target:
    from runtime.trt.layers import read_layers, read_logged_layers, summarise_layers

    layer = {
        "Name": "conv", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: /conv]", "TacticName": "i8",
        "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}], "Outputs": [{"Name": "y", "Format/Datatype": "Int8"}],
        "Weights": {"Type": "Int8", "Count": 9},
    }  # fmt: skip
    logged = (
        b"Name: c, LayerType: CaskConvolution, Inputs: [ { Name: x, Datatype: Int8 }], Constants: [], "
        b"Outputs: [ { Name: y, Datatype: Float }], TacticName: t, Metadata: [ONNX Layer: c]\n"
    )

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        read_logged_layers(text)
        summarise_layers(read_layers(text))

    return Target((json.dumps({"Layers": [layer, layer]}).encode(), logged), run)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "settings file, YAML": _yaml_alone,
    "settings file, a command's flags": _settings,
    "augmentation file": _augmentation,
    "design file": _design,
    "index.csv": _index,
    "classes.txt": _classes,
    "list of inputs, .csv": _list_of(".csv"),
    "list of inputs, .txt": _list_of(".txt"),
    **{f"picture, {form}": _pictures(form) for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")},
    "NIfTI": _nifti,
    "NIfTI, gzip": _nifti_packed,
    "NIfTI mask, content": _nifti_mask,
    "DICOM": _dicom,
    "DICOM, many frames": _dicom_frames,
    "DICOM, JPEG-LS and RLE": _dicom_packed("jpeg-ls", "rle"),
    "DICOM, JPEG and JPEG 2000": _dicom_packed("jpeg-baseline", "jpeg-2000"),
    "DICOM, lossless JPEG": _dicom_packed("jpeg-lossless-sv1"),
    "DICOM, values, written as SEG": _dicom_tags,
    "DICOM, bytes, written as SEG": _seg_of_damaged,
    "DICOM series, one of three": _series_folder,
    "DICOM-SEG": _seg,
    "ZIP": _archive,
    "manifest.json": _manifest_file,
    "golden.npz": _golden,
    "golden.npz, content": _golden_members,
    "golden_prompts.npz": _golden_prompts,
    "student, weights": _student_weights,
    "student, settings": _student_settings,
    "teacher, settings": _teacher_settings,
    "adapter folder": _adapters,
    "checkpoint, .pt": _checkpoint(".pt"),
    "checkpoint, .safetensors": _checkpoint(".safetensors"),
    "training, checkpoint": _training,
    "training, steps.csv": _training_steps,
    "soft labels, labels.json": _soft_labels,
    "soft labels, shard": _soft_shard,
    "soft labels, list of a shard": _soft_list,
    "predictions.jsonl": _records,
    "device-report.json": _device_report,
    "settings.json of a partial": _stored_settings,
    "cache of features": _cache_rows,
    "ONNX, rules of TensorRT": _onnx_rules,
    "ONNX, structure": _onnx_structure,
    "TensorRT, layers of an engine": _engine_layers,
}
"""Name → what makes the target in a folder of its own."""

SHARES = {
    "TensorRT, layers of an engine": 80.0, "predictions.jsonl": 55.0, "training, steps.csv": 28.0,
    "soft labels, list of a shard": 28.0, "soft labels, labels.json": 14.0, "soft labels, shard": 14.0,
    "checkpoint, .safetensors": 12.0, "manifest.json": 10.0, "settings.json of a partial": 6.0, "settings file, YAML": 6.0,
    "classes.txt": 6.0, "index.csv": 5.0, "golden.npz": 4.0, "golden.npz, content": 4.0, "golden_prompts.npz": 4.0,
    "ZIP": 4.0, "NIfTI": 1.0, "NIfTI, gzip": 1.0, "NIfTI mask, content": 1.0, "DICOM": 0.6, "DICOM, many frames": 0.4,
    "DICOM, JPEG-LS and RLE": 0.4, "DICOM, JPEG and JPEG 2000": 0.2, "DICOM, lossless JPEG": 0.1, "DICOM-SEG": 0.06,
    "DICOM, values, written as SEG": 0.05, "DICOM, bytes, written as SEG": 0.06, "DICOM series, one of three": 0.1,
    "settings file, a command's flags": 0.03, "design file": 0.1, "student, weights": 0.2, "student, settings": 0.2,
    "teacher, settings": 0.06, "adapter folder": 0.1, "checkpoint, .pt": 1.0, "training, checkpoint": 0.3,
    "cache of features": 0.3,
}  # fmt: skip
"""Of the long run's inputs, where it is not `USUAL_SHARE`: few of what takes long, many of what takes next to nothing."""
USUAL_SHARE = 2.5
