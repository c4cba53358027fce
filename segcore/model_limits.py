"""What a manifest itself says against a model: the limits that every reader must be told, the gravest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segcore.host import Made

if TYPE_CHECKING:
    from segcore.bundle import Manifest

FEW_CASES = 200
"""Training cases below which the card warns. Our own measure: what one patient in a hundred has is hardly seen then."""
FEW_MEASURED = 50
"""Cases below which the mean of a measured figure is called unsure."""


def limits(manifest: Manifest) -> tuple[str, ...]:
    """One sentence or two each."""
    return tuple(
        text for found in (_training(manifest), _measuring(manifest), _running(manifest)) for text in found
    )


def _training(m: Manifest) -> list[str]:
    found, settings = [], m.settings
    if m.data.name.startswith("phantom:"):
        found.append(
            "Trained on procedural phantoms, drawn by a program. It has seen no patient, and its figures say nothing "
            "about a clinic."
        )  # fmt: skip
    if "no pretrained weights" in m.pretrained.lower():
        found.append("No pretrained weights: training started from random weights.")
    train = m.data.counts.get("train")
    share = settings.get("labelled_share", 1.0)
    if isinstance(share, int | float) and share < 1:
        found.append(f"Only the masks of {100 * share:g} % of the training patients were used.")
    if train is not None and train < FEW_CASES:
        found.append(f"Few cases: {train} to train on. What is rare among patients is missing among them.")
    if "seed" in settings:
        found.append(
            f"Trained once, with seed {settings['seed']}. Another seed gives another model; by how much its figures "
            "would differ is not known from this bundle."
        )  # fmt: skip
    if m.teacher:
        found.append("It learned from a teacher's masks as well, and with them from the teacher's mistakes.")
    return found


def _measuring(m: Manifest) -> list[str]:
    found = []
    few = sorted({metric.cases for metric in m.metrics if metric.cases < FEW_MEASURED})
    if few:
        found.append(f"Measured on few cases ({', '.join(map(str, few))}): the figures above are unsure.")
    if not any(metric.split == "test" for metric in m.metrics):
        found.append("No figure above is of test cases that were kept out of training and of its steering.")
    found.append(
        "Other hospitals, scanners, protocols, ages and illnesses than those in its data have not been tested."
    )
    return found


def _running(m: Manifest) -> list[str]:
    if m.engine_target:
        target = m.engine_target
        gpu = f"{target.gpu} (compute capability {target.compute_capability})"
        return [f"Runs only on {gpu} with TensorRT {target.tensorrt}."]
    if m.format == "tensorrt-onnx":
        return [
            "Never run on the device it is meant for, as far as this bundle knows: its speed and TensorRT's own "
            "rounding are unmeasured until the device has built, verified and timed an engine."
        ]  # fmt: skip
    if m.format == "torch":
        return [
            f"Run with PyTorch only, on {_host(m.made)}. Export it, and verify the export, before any use."
        ]
    return [
        f"Never run, as far as this bundle knows, on another machine than {_host(m.made)}; `python -m runtime.verify` "
        "checks its masks on yours."
    ]  # fmt: skip


def _host(made: Made) -> str:
    return " ".join(made.host.split())
