"""Records of cases and bundles with every field filled, for the tests of what is told of them."""

from benchmarks.report.record import CaseRecord, Record


def score(
    case: str,
    dice: float = 0.9,
    *,
    patient: str | None = None,
    name: str = "a",
    hd95: float = 2.0,
    small: tuple[int, int] = (0, 0),
) -> CaseRecord:
    return CaseRecord(
        name=name, engine="torch", case=case, patient=patient or case, dice_mean=dice, iou_mean=dice / 2,
        dice_by_class={"lung": dice}, iou_by_class={"lung": dice / 2},
        hd95_unit="px", hd95_mean=hd95, hd95_by_class={"lung": hd95},
        small_found={"lung": small[0]}, small_parts={"lung": small[1]},
    )  # fmt: skip


def record(name: str = "small", **changes: object) -> Record:
    fields: dict[str, object] = {
        "name": name, "reference": "big", "bundle": f"runs/{name}", "bundle_sha256": "0" * 64,
        "kind": "student", "precision": "fp32", "engine": "openvino", "engine_version": "1", "threads": 2,
        "data": "phantom:cxr", "split": "test", "input_height_px": 128, "input_width_px": 128,
        "parameters": 500_000, "macs": 765_000_000, "size_bytes": 2_000_000, "cases": 40, "patients": 30,
        "dice_mean": 0.9, "dice_p05": 0.8, "dice_low": 0.88, "dice_high": 0.92,
        "dice_by_class": {"lung": 0.9}, "iou_mean": 0.82, "iou_low": 0.8, "iou_high": 0.84,
        "iou_by_class": {"lung": 0.82}, "hd95_unit": "px", "hd95_mean": 3.21, "hd95_low": 2.9, "hd95_high": 3.62,
        "hd95_by_class": {"lung": 3.21}, "small_px": 50, "small_parts": 0,
        "times_fewer_parameters": 10.0, "times_smaller_file": 10.0,
    }  # fmt: skip
    if name != "big":
        fields |= {"dice_difference": -0.01, "dice_difference_low": -0.015, "dice_difference_high": -0.005,
                   "dice_share_kept": 0.989}  # fmt: skip
    return Record.model_validate(fields | changes)


def timed(ms: float, faster: float = 1.0) -> dict[str, object]:
    names = [f"{a}_ms_p{p}" for a in ("latency", "end_to_end") for p in (50, 90, 99)]
    speed = dict.fromkeys(
        ["times_faster", "times_faster_low", "times_faster_high", "times_faster_engine"], faster
    )
    return {**dict.fromkeys(names, ms), **speed, "samples": 50, "rounds": 5, "throughput_images_s": 1e3 / ms,
            "cold_start_ms": 250.0, "peak_memory_mib": 99.5}  # fmt: skip
