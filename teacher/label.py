"""Writes a teacher's soft labels for all training images, once, with or without masks.

`python -m teacher.label --bundle T --data D --out S`; under `accelerate launch` each process writes its own shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from segcore.agreement import check_agreement
from segcore.bundle import Bundle, open_bundle
from segcore.case import Case
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset import Dataset, open_dataset
from segcore.host import made_now
from segcore.outfolder import out_folder
from segcore.soft_labels import LabelRecord, finished_shards, seal_labels, shard_name, write_shard

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    Ask = Callable[[np.ndarray], np.ndarray]


class LabelSettings(Settings):
    """Write a teacher's soft labels."""

    bundle: Path
    """The teacher bundle (torch format)."""
    data: str
    """The data set that the student will be trained on: its training split and its images without masks."""
    out: Path
    """The folder of soft labels to write."""
    batch_size: int = Field(8, ge=1)
    """Images a forward pass."""
    shard_images: int = Field(256, ge=1)
    """Images a shard; an interrupted run repeats at most one shard."""
    split_seed: int = 0
    """As for teacher.train."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run the teacher."""
    overwrite: bool = False
    """Replace a complete --out."""


def main(settings: LabelSettings) -> None:
    """Runs the stage; see the module."""
    bundle = open_bundle(settings.bundle)
    dataset = open_dataset(settings.data, seed=settings.split_seed, need_masks=False)
    trained_on = bundle.manifest.data
    check_agreement(
        f"bundle {bundle.folder}",
        classes=bundle.manifest.classes,
        data_sha256=trained_on.sha256,
        split_sha256=trained_on.split_sha256,
        dataset=dataset,
    )
    cases = dataset.split("train") + dataset.unlabelled
    recipe = {"teacher": bundle.sha256, "data_sha256": dataset.sha256, "split_sha256": dataset.split_sha256,
              "shard_images": settings.shard_images}  # fmt: skip
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        _label(settings, bundle, dataset, cases, folder)
    log(f"wrote {settings.out}")
    print_result(soft=str(settings.out), images=len(cases), teacher=bundle.sha256)


def _label(
    settings: LabelSettings, bundle: Bundle, dataset: Dataset, cases: Sequence[Case], folder: Path
) -> None:
    from accelerate import PartialState
    from tqdm import tqdm

    state = PartialState(cpu=settings.device == "cpu")
    mine = cases[state.process_index :: state.num_processes]
    done = finished_shards(folder)
    ask = _teacher(bundle, str(state.device))
    bar = tqdm(total=len(mine), desc="labelling", unit="image", disable=not state.is_main_process)
    for number, start in enumerate(range(0, len(mine), settings.shard_images)):
        part = mine[start : start + settings.shard_images]
        name, ids = shard_name(state.process_index, number), tuple(case.id for case in part)
        if done.get(name) != ids:
            write_shard(folder, name, ids, _run(ask, bundle, part, settings.batch_size, bar))
        else:
            bar.update(len(part))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        manifest = bundle.manifest
        record = LabelRecord(
            teacher=bundle.sha256,
            teacher_name=manifest.name,
            data_sha256=dataset.sha256,
            split_sha256=dataset.split_sha256,
            classes=manifest.classes,
            activation=manifest.output.activation,
            height_px=manifest.input.height_px,
            width_px=manifest.input.width_px,
            shards=finished_shards(folder),
            made=made_now(),
            lineage=(*manifest.lineage, manifest.made),
        )
        seal_labels(folder, record)
    state.wait_for_everyone()


def _teacher(bundle: Bundle, device: str) -> Ask:
    """A function from pictures N×H×W×C uint8 to logits N×K×H×W float16 at the teacher's input size."""
    import torch
    import torch.nn.functional as F

    from segcore.learn.deploy import DeployGraph
    from teacher.network import load_teacher

    spec = bundle.manifest.input
    graph = DeployGraph(load_teacher(bundle), spec).to(device).eval()

    def ask(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = graph(torch.from_numpy(pictures).to(device)).float()
            full = F.interpolate(logits, spec.size_px, mode="bilinear", align_corners=False)
        return full.clamp(-6e4, 6e4).half().cpu().numpy()  # float16's largest number is 65504

    return ask


def _run(ask: Ask, bundle: Bundle, cases: Sequence[Case], batch: int, bar: tqdm[None]) -> np.ndarray:
    import numpy as np

    from segcore.preprocess import prepare

    parts = []
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        parts.append(
            ask(np.stack([prepare(c.image(), bundle.manifest.input, name=f"image {c.id}") for c in some]))
        )
        bar.update(len(some))
    return np.concatenate(parts)


if __name__ == "__main__":
    run_command(main, LabelSettings, "python -m teacher.label")
