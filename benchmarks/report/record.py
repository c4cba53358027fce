"""What one measurement says: a line of records.jsonl, and a line of cases.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from benchmarks.measuring import Part
from segcore.stats import Estimate


class CaseRecord(Part):
    """One case under one bundle and engine. Dice and IoU are 0–1; the means are over foreground classes.

    Attributes:
        hd95_mean: 95th percentile surface distance, at the picture's own size, in `hd95_unit`.
        small_found: parts of the truth below the report's `small_px` that were found, by class.
        small_parts: how many there are, by class.
        area_unit: px where not every case knows its spacing; then areas are numbers of pixels.
        area_by_class: of the predicted mask.
        true_area_by_class: of the truth.
    """

    name: str
    engine: str
    case: str
    patient: str
    dice_mean: float
    iou_mean: float
    dice_by_class: dict[str, float]
    iou_by_class: dict[str, float]
    hd95_unit: Literal["px", "mm"]
    hd95_mean: float
    hd95_by_class: dict[str, float]
    small_found: dict[str, int]
    small_parts: dict[str, int]
    area_unit: Literal["px", "mm²"] = "px"
    area_by_class: dict[str, float] = Field(default_factory=dict)
    true_area_by_class: dict[str, float] = Field(default_factory=dict)


class Reliability(Part):
    """How often pixels were right that were given a probability, in bins of equal width from 0 to 1.

    Attributes:
        of: foreground: the probability of the one class, against how often it is there; decision: of the most probable
            class, against how often it is the right one.
        pixels: in each bin, over all cases.
        confidence: their mean probability; 0 in an empty bin.
        observed: how often it was so, 0–1; 0 in an empty bin.
        ece: expected calibration error: |observed − confidence|, mean over pixels; 0–1.
    """

    of: Literal["foreground", "decision"]
    pixels: tuple[int, ...]
    confidence: tuple[float, ...]
    observed: tuple[float, ...]
    ece: float


class Accuracy(Part):
    """Accuracy of one bundle and engine over the cases of a split.

    Attributes:
        dice_p05: 5th percentile over cases: one case in twenty is worse.
        dice_low: lower end of the 95 % interval of `dice_mean` over patients; None for a single patient.
        dice_high: its upper end.
        hd95_mean: in `hd95_unit`; mean over classes, then cases, with its interval over patients.
        small_parts: connected parts of the truth smaller than `small_px` pixels, over all cases.
        small_recall: share of them that were found, 0–1, with its interval over the patients that have some;
            None without such parts.
    """

    cases: int
    patients: int
    dice_mean: float
    dice_p05: float
    dice_low: float | None
    dice_high: float | None
    dice_by_class: dict[str, float]
    iou_mean: float
    iou_low: float | None
    iou_high: float | None
    iou_by_class: dict[str, float]
    hd95_unit: Literal["px", "mm"]
    hd95_mean: float
    hd95_low: float | None
    hd95_high: float | None
    hd95_by_class: dict[str, float]
    small_px: int
    small_parts: int
    small_recall: float | None = None
    small_recall_low: float | None = None
    small_recall_high: float | None = None
    small_recall_by_class: dict[str, float] = Field(default_factory=dict)


class Difference(Estimate):
    """A figure of the same cases minus the reference's."""

    @property
    def includes_zero(self) -> bool:
        """True unless there is an interval and it leaves 0 out."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


class Speed(Part):
    """Times of one bundle and engine at one thread count.

    Attributes:
        latency_ms_p50: the engine alone, `run` on a prepared batch of one.
        end_to_end_ms_p50: `predict`, from the decoded picture to the mask at the picture's size.
        samples: timed calls behind each percentile, of the engine alone and of the whole the fewer: a burst is of so
            many calls as fill its time, so the two need not be alike.
        throughput_images_s: end-to-end calls one after another, a second.
        times_faster: median end-to-end time of the reference divided by this one's, in the same run.
        times_faster_low: the smallest such ratio over the rounds.
        times_faster_high: the largest.
        times_faster_engine: the ratio for the engine alone.
        other_load_share: share of the machine's processor time that other programs took meanwhile, 0–1.
        end_to_end_ms_sorted: the timed calls, fastest first; of very many, so many evenly spaced ones.
    """

    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    end_to_end_ms_p50: float
    end_to_end_ms_p90: float
    end_to_end_ms_p99: float
    samples: int
    rounds: int
    throughput_images_s: float
    times_faster: float
    times_faster_low: float
    times_faster_high: float
    times_faster_engine: float
    other_load_share: float | None = None
    end_to_end_ms_sorted: tuple[float, ...] = ()


class Start(Part):
    """A fresh process that opens a bundle and predicts once.

    Attributes:
        cold_start_ms: importing the engine, opening the bundle, first mask; without Python's own start.
        peak_memory_mib: the largest resident size of that process, in MiB.
    """

    cold_start_ms: float
    peak_memory_mib: float


class Record(Accuracy):
    """One bundle, one engine, one thread count. Fields that were not measured are None.

    Attributes:
        name: unique in a report: the bundle's name, with the engine where it was measured on several.
        bundle: the folder.
        parent: sha256 of the bundle that it was exported from; None for that one itself.
        size_bytes: of the model's files, see `Manifest.model_bytes`.
        dice_difference: Dice minus the reference's on the same cases; None for the reference.
        dice_share_kept: `dice_mean` divided by the reference's; None for the reference, or if that is 0.
        small_recall_difference: `small_recall` minus the reference's on the same parts; None for the reference.
        times_fewer_parameters: the reference's parameters divided by this one's.
        peak_gmac_s: what dense convolutions of this precision reach on this machine with this engine and thread
            count, 1e9 multiply-accumulates a second; None unless the roofline was asked for.
        share_of_peak: what the model reaches of that, by its median engine latency, 0–1.
    """

    name: str
    reference: str
    bundle: str
    bundle_sha256: str
    parent: str | None = None
    kind: str
    precision: str
    engine: str
    engine_version: str
    threads: int | None
    data: str
    split: str
    input_height_px: int
    input_width_px: int
    parameters: int
    macs: int
    size_bytes: int
    dice_difference: float | None = None
    dice_difference_low: float | None = None
    dice_difference_high: float | None = None
    dice_share_kept: float | None = None
    small_recall_difference: float | None = None
    small_recall_difference_low: float | None = None
    small_recall_difference_high: float | None = None
    times_fewer_parameters: float
    times_smaller_file: float
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    end_to_end_ms_p50: float | None = None
    end_to_end_ms_p90: float | None = None
    end_to_end_ms_p99: float | None = None
    samples: int | None = None
    rounds: int | None = None
    throughput_images_s: float | None = None
    times_faster: float | None = None
    times_faster_low: float | None = None
    times_faster_high: float | None = None
    times_faster_engine: float | None = None
    other_load_share: float | None = None
    end_to_end_ms_sorted: tuple[float, ...] = ()
    cold_start_ms: float | None = None
    peak_memory_mib: float | None = None
    peak_gmac_s: float | None = None
    share_of_peak: float | None = None
    reliability: Reliability | None = None

    @property
    def is_reference(self) -> bool:
        return self.name == self.reference

    @property
    def network(self) -> str:
        """sha256 of the trained bundle: the same for all exports of one network."""
        return self.parent or self.bundle_sha256

    @property
    def difference(self) -> Difference | None:
        """The paired difference to the reference; None for the reference."""
        if self.dice_difference is None:
            return None
        return Difference(
            mean=self.dice_difference, low=self.dice_difference_low, high=self.dice_difference_high
        )


def for_threads(records: Sequence[Record]) -> list[Record]:
    """The records of the first thread count that was timed: the ones that headline and plots speak of."""
    return [record for record in records if record.threads == records[0].threads]
