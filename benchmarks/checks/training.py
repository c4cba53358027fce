"""Where a student's training step spends its time: `python -m benchmarks.checks.training --data D --design base`.

Runs real steps of `student.distill`'s own parts (training set, augmentation, loader, loss, optimiser) and prints
images/s and the milliseconds an image of each part, medians over the steps, as a table and one JSON line; with --out
also as a bar chart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from benchmarks.measuring import Part, check_libraries, new_png_figure, results_folder, write_record
from runtime.timing.latency import others_share, read_processor_times
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.dataset.soft_labels import open_soft_labels
from segcore.host import describe_host, library_versions

if TYPE_CHECKING:
    from segcore.learn.loader import TrainingSet
    from segcore.learn.loop import Run

PARTS = ("augmentation", "collation", "forward", "loss", "backward", "optimiser")
"""Of a step, in their order."""
WARM_UP_STEPS = 3
"""Steps that do not count: memory and threads are made in them."""
_VALIDATION_CASES = 64


class TrainingSettings(Settings):
    """`python -m benchmarks.checks.training` measures images/s of a student's training, and where the time goes."""

    data: str
    """A folder with images/ and masks/, an index.csv, or phantom:cxr, phantom:ct, phantom:dental."""
    design: str = "base"
    """As for student.distill."""
    size: int = Field(256, ge=32, multiple_of=32)
    """Height and width of the network's input, in pixels."""
    soft: Path | None = None
    """Soft labels that teacher.label wrote."""
    amp: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic, as for student.distill."""
    batch_size: int = Field(8, ge=1)
    """Images a step."""
    steps: int = Field(40, ge=1)
    """Steps that count, after three that do not."""
    threads: int = Field(1, ge=1)
    """CPU threads of the training process."""
    workers: int = Field(0, ge=0)
    """Loader processes; what is left of the loader's time is then waiting for them."""
    out: Path | None = None
    """New folder for training.json and training.png."""
    overwrite: bool = False
    """Replace a finished --out."""


class TrainingCost(Part):
    """What was measured; every `ms` is of one image, the median over the steps.

    Attributes:
        images_s: training images a second, without reading and validation.
        ms: by part, of `PARTS`.
        precision: no is fp32.
        reading_s: decoding and resizing all `images` once, before the first step.
        validation_ms: of one validation image, from the picture to its Dice.
        validation_share: of an epoch's time.
        other_load_share: share of the machine that other programs took meanwhile.
    """

    design: str
    parameters: int
    size_px: int
    soft_labels: bool
    precision: str
    threads: int
    workers: int
    batch_size: int
    steps: int
    images_s: float
    ms: dict[str, float]
    images: int
    reading_s: float
    validation_images: int
    validation_ms: float
    validation_share: float
    other_load_share: float | None
    host: str = Field(default_factory=describe_host)
    versions: dict[str, str] = Field(default_factory=library_versions)


def main(settings: TrainingSettings) -> None:
    """Measures, prints the table, and writes --out where it is given."""
    if settings.out is None:
        cost = measure_training(settings)
    else:
        check_libraries("matplotlib")
        with results_folder(settings) as folder:
            cost = measure_training(settings)
            write_record(folder / "training.json", cost)
            draw_cost(cost, folder / "training.png")
        log(f"wrote {settings.out}")
    print(cost_table(cost))
    print_result(**cost.model_dump())


def measure_training(settings: TrainingSettings) -> TrainingCost:
    """Builds what `student.distill` would build, and times its steps.

    Raises:
        InputError: no such design, or data, soft labels or size that do not fit.
    """
    import torch

    from segcore.learn.augment import Augmentation
    from segcore.learn.evaluate import Validator
    from segcore.learn.loader import TrainingSet, training_input
    from segcore.learn.loop import open_accelerator, open_run
    from segcore.picture.preprocess import output_spec
    from student.design import check_size, find_design
    from student.distill import DistillSettings, loss_function
    from student.network import GREY_MEAN_STD, RGB_MEAN_STD, build_student

    torch.set_num_threads(settings.threads)
    design = find_design(settings.design)
    check_size(design, settings.size)
    shared = settings.model_dump(include={"data", "size", "amp", "batch_size", "workers", "soft"})
    training = DistillSettings(
        **shared, design=settings.design, out=settings.out or Path("unused"), device="cpu"
    )
    dataset, watch = open_dataset(settings.data), Stopwatch()
    soft = open_soft_labels(settings.soft) if settings.soft else None
    cases, size = dataset.split("train"), (settings.size, settings.size)
    spec = training_input(cases, size, {1: GREY_MEAN_STD, 3: RGB_MEAN_STD})
    output = output_spec(dataset.classes, stride=design.logits_stride)
    transforms = training.transforms(spec.channels)
    augment = watch.around("augmentation", Augmentation(transforms, with_soft=soft is not None))
    with watch.part("reading"):
        data = TrainingSet(cases, spec, classes=len(dataset.classes), seed=0, augment=augment, soft=soft)
    reading_s = watch.lap()["reading"]
    torch.manual_seed(0)
    network = build_student(design, channels=spec.channels, outputs=output.channels)
    network.register_forward_pre_hook(lambda *_: watch.start("forward"))
    network.register_forward_hook(lambda *_: watch.stop())
    accelerator = open_accelerator(training)
    loss_of = watch.around("loss", loss_function(training, spec, None, accelerator.device))
    run = open_run(network, loss_of, training, accelerator)
    before = read_processor_times()
    laps = _timed_steps(run, data, training, settings.steps, watch)
    held = dataset.split("val", limit=_VALIDATION_CASES)
    validator = Validator(held, spec, output, len(dataset.classes), batch=settings.batch_size)
    with watch.part("validation"):
        validator.dice(network.eval())
    validation_s = sum(watch.lap().values()) / len(held)  # the network's hooks charge "forward" here too
    image_s = statistics.median(sum(lap.values()) for lap in laps) / settings.batch_size
    validated = len(dataset.split("val"))
    return TrainingCost(
        design=settings.design,
        parameters=sum(p.numel() for p in network.parameters()),
        size_px=settings.size,
        soft_labels=soft is not None,
        precision=str(accelerator.mixed_precision).replace("no", "fp32"),
        threads=settings.threads,
        workers=settings.workers,
        batch_size=settings.batch_size,
        steps=settings.steps,
        images_s=1 / image_s,
        ms={p: 1e3 * statistics.median(lap.get(p, 0.0) for lap in laps) / settings.batch_size for p in PARTS},
        images=len(cases),
        reading_s=reading_s,
        validation_images=validated,
        validation_ms=1e3 * validation_s,
        validation_share=validated * validation_s / (validated * validation_s + len(cases) * image_s),
        other_load_share=others_share(before, read_processor_times()),
    )


def _timed_steps(
    run: Run, data: TrainingSet, training: Any, steps: int, watch: Stopwatch
) -> list[dict[str, float]]:
    """Seconds by part of each step; as many epochs as they take."""
    from segcore.learn.loader import build_loader
    from segcore.learn.loop import add_gradient, update_weights

    loader, order = build_loader(data, batch_size=training.batch_size, workers=training.workers, seed=0)

    def batches() -> Iterator[Any]:
        for order.epoch in count():
            yield from loader

    run.wrapped.train()
    laps, stream = [], batches()
    for _ in range(WARM_UP_STEPS + steps):
        with watch.part("collation"):
            batch = next(stream)
        with watch.part("backward"):  # what is left of it after the loss and, in that, the network
            add_gradient(run, batch)
        with watch.part("optimiser"):
            update_weights(run, training.lr, training.clip_norm)
        laps.append(watch.lap())
    return laps[WARM_UP_STEPS:]


def cost_table(cost: TrainingCost) -> str:
    """The parts with milliseconds an image and shares, and a line for what is not in a step."""
    total = sum(cost.ms.values())
    lines = [f"{part:12s} {ms:7.2f} ms  {ms / total:4.0%}" for part, ms in cost.ms.items()]
    return "\n".join(
        [
            f"{cost.design} at {cost.size_px} px, {cost.precision}, batches of {cost.batch_size}, "
            f"{cost.threads} thread(s), {cost.workers} worker(s): {cost.images_s:.0f} images/s",
            *lines,
            f"{'a step':12s} {1e3 / cost.images_s:7.2f} ms an image",
            f"reading {cost.images} images once: {cost.reading_s:.1f} s; validation {cost.validation_ms:.1f} ms "
            f"an image, {cost.validation_share:.0%} of an epoch",
        ]
    )


def draw_cost(cost: TrainingCost, path: Path) -> None:
    """Writes a PNG with a bar a part."""
    figure = new_png_figure(6.4, 2.8)
    axes = figure.add_subplot()
    bars = axes.barh(list(cost.ms), list(cost.ms.values()), color="#0072b2")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(
        xlabel="milliseconds an image", title=f"{cost.design}, {cost.precision}: {cost.images_s:.0f} images/s"
    )
    figure.savefig(path, dpi=110)


class Stopwatch:
    """Seconds by part; a part that begins inside another one stops the outer one's clock meanwhile.

    So parts that call each other, as `backward` calls `loss` and that the network, are told apart and add up.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._clock, self._since = clock, 0.0

    def start(self, part: str) -> None:
        """Begins a part."""
        self._charge()
        self._open.append(part)

    def stop(self) -> None:
        """Ends the part that began last."""
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part as a block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time charged to a part."""

        def timed(*args: Any) -> Any:
            with self.part(name):
                return function(*args)

        return timed

    def lap(self) -> dict[str, float]:
        """The seconds since the last lap."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


if __name__ == "__main__":
    run_command(main, TrainingSettings, "python -m benchmarks.checks.training")
