"""Benchmarks: where a model's time goes, from made-up counters and from a real model."""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.checks.profile import (
    CONVOLUTION,
    INPUT,
    JOIN,
    KINDS,
    POOLING,
    TRANSPOSED,
    BundleProfile,
    Layer,
    Profile,
    ProfileSettings,
    Work,
    describe_profiles,
    draw_profiles,
    kind_table,
    main,
    sentences,
    write_layers,
)
from runtime.timing.roofline import Roofline
from segcore.bundle.folder import open_bundle
from segcore.errors import InputError

PEAKS = Roofline("openvino", "2026.1", 1, 400.0, 100.0, 40.0)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def layer(
    kind: str,
    share: float,
    name: str = "x",
    macs: int = 0,
    outputs: int = 16,
    kernel: str = "brgconv_avx512_I8",
) -> Layer:
    work = Work(macs, 16, outputs, f"16→{outputs} 3×3 at 8×8") if macs else None
    return Layer(name, (name,), kind, kernel, share, 1e3 * share, work)


def profiled(*layers: Layer, ms: float = 2.0, precision: str = "int8") -> BundleProfile:
    return BundleProfile("nano", precision, Profile(layers, ms, 1.02, 50), PEAKS)


def test_rates_are_of_the_layers_share_of_the_latency():
    one = profiled(layer(CONVOLUTION, 0.5, macs=200_000_000), layer(JOIN, 0.5))
    assert one.convolution_share == 0.5
    assert one.share_of_peak == pytest.approx(0.5)  # 200 MMAC in 1 ms, of 400 GMAC/s
    assert profiled(*one.profile.layers, precision="fp32").share_of_peak == pytest.approx(2.0)


def test_goals_that_are_kept_need_no_reason():
    said = " ".join(sentences(profiled(layer(CONVOLUTION, 0.9, macs=400_000_000), layer(JOIN, 0.1))))
    assert said.startswith(
        "90 % of the time is in convolutions (goal 80 %), which reach 56 % of the measured INT8 peak of 400 GMAC/s"
    )
    assert "Missed" not in said
    assert "Counters changed the latency by +2.0 %" in said


def test_a_missed_goal_is_explained():
    one = profiled(
        layer(CONVOLUTION, 0.30, macs=8_000_000, outputs=8),
        layer(CONVOLUTION, 0.40, macs=160_000_000, kernel="brgconv_avx512_f32"),
        layer(POOLING, 0.10, "pool"),
        layer(JOIN, 0.05, "cat_1"),
        layer(JOIN, 0.15, "cat_2"),
    )
    said = sentences(one)
    assert (
        "Missed, time in convolutions: the rest is add, concat 20.0 % (most: cat_2, 15.0 %); "
        "pooling 10.0 % (most: pool, 10.0 %)." in said
    )
    assert (
        "Missed, rate of the convolutions: what costs most is 16→8 3×3 at 8×8, 30 % of the time at 3 % of the peak "
        "(8 of 16 lanes filled by channels out)." in said
    )
    assert "Not computed in 8 bits: 16→16 3×3 at 8×8." in said


def test_what_passes_the_peak_is_no_result():
    assert any(
        "More than the peak" in s for s in sentences(profiled(layer(CONVOLUTION, 1.0, macs=900_000_000)))
    )


def test_kinds_are_listed_by_time():
    one = profiled(layer(JOIN, 0.3), layer(CONVOLUTION, 0.6, macs=8_000_000), layer(JOIN, 0.1))
    assert [row[:4] for row in kind_table(one).rows] == [
        ["convolution", "1", "60.0 %", "1.200"],
        ["add, concat", "2", "40.0 %", "0.800"],
    ]


def test_files_of_a_profile(tmp_path):
    one = profiled(layer(CONVOLUTION, 0.75, macs=8_000_000), layer(JOIN, 0.25, "cat"))
    write_layers(tmp_path / "layers.csv", [one, one])
    lines = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert len(lines) == 4
    assert [lines[0][k] for k in ("work", "share", "ms", "computed_in")] == [
        "16→16 3×3 at 8×8",
        "0.75",
        "1.5",
        "i8",
    ]
    assert lines[1]["share_of_peak"] == ""
    assert "| cat | add, concat | 25.0 % |" in describe_profiles([one], host="a CPU")
    pytest.importorskip("matplotlib")
    draw_profiles([one, one], tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


@needs_openvino
def test_work_is_that_of_the_network(exported):
    """The multiplications of every layer, told from shapes, add up to U-Net's."""
    from benchmarks.checks.profile import profile_model

    bundle = open_bundle(exported("openvino", "int8"))
    picture = np.zeros((1, *bundle.manifest.input.size_px, 1), np.uint8)
    profile = profile_model(bundle.model_path, picture, threads=1, seconds=0.01)
    assert sum(layer.macs for layer in profile.layers) == _unet_macs(8, 64)
    assert profile.share(*KINDS) == pytest.approx(1)
    kinds = [layer.kind for layer in profile.layers]
    assert INPUT not in kinds[kinds.index(CONVOLUTION) :]  # before it, one may be too short to be counted
    assert (kinds.count(CONVOLUTION), kinds.count(TRANSPOSED)) == (19, 4)
    assert POOLING in kinds
    assert profile.layers[kinds.index(CONVOLUTION)].work.label == "1→8 3×3 at 64×64"
    assert {x.precision for x in profile.layers if x.work} == {"i8"}


def _unet_macs(base: int, size: int) -> int:
    widths, sizes = [base * 2**i for i in range(5)], [size // 2**i for i in range(5)]
    total = 9 * size**2 * (1 * base + base * base)
    for i in range(1, 5):
        total += 9 * sizes[i] ** 2 * (widths[i - 1] * widths[i] + widths[i] ** 2)  # down
        total += 4 * sizes[i] ** 2 * widths[i] * widths[i - 1]  # transposed 2×2
        total += 9 * sizes[i - 1] ** 2 * (2 * widths[i - 1] ** 2 + widths[i - 1] ** 2)  # up, after the concat
    return total + size**2 * base


@needs_openvino
def test_from_a_bundle_to_a_profile(exported, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(ProfileSettings(bundle=(exported("openvino", "int8"),), out=tmp_path / "p", seconds=0.05))
    assert {path.name for path in (tmp_path / "p").iterdir()} >= {"layers.csv", "profile.md", "profile.png"}
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < said["models"][0]["convolution_share"] < 1
    assert said["peaks"]["int8_gmac_s"] > 0


def test_a_torch_bundle_has_to_be_exported_first(torch_bundle, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="must be exported first, got torch format"):
        main(ProfileSettings(bundle=(torch_bundle,), out=tmp_path / "p"))


@needs_openvino
def test_what_comes_before_the_first_convolution_is_the_inputs(exported):
    from benchmarks.checks.profile import executed_layers
    from runtime.engines.openvino_engine import cpu_settings, import_openvino

    path = str(open_bundle(exported("openvino", "fp32")).model_path)
    compiled = import_openvino().Core().compile_model(path, "CPU", cpu_settings(1))
    executed = executed_layers(compiled)
    early = {operation for operations, before in executed.values() if before for operation in operations}
    late = {operation for operations, before in executed.values() if not before for operation in operations}
    assert "node__to_copy" in early  # the cast of the picture
    assert not [name for name in early if "pool" in name or "cat" in name]
    assert [name for name in late if "max_pool" in name]
