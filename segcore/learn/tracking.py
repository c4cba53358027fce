"""Settings, curves and pictures of a training for TensorBoard, MLflow or Weights & Biases, by Accelerate's trackers.

Files lie under `--log-dir`, never in the bundle. Nothing leaves the machine unless the tracker's own environment
variables say so: pictures of patients are among it.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from segcore.bundle.manifest import Manifest
from segcore.command import log
from segcore.errors import reading
from segcore.learn.settings import TrainSettings, run_name
from segcore.outfolder import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

PROJECT = "sam2edge"
_IDS = "tracking.json"
_MLFLOW_BATCH = 1000
"""Metrics a request. Source: MLflow's REST API, log-batch."""


def start_tracking(accelerator: Accelerator, settings: TrainSettings, *, first_step: int) -> None:
    """Opens the trackers of `--log-with`; a run that is resumed goes on where its checkpoint is.

    Args:
        accelerator: of the training.
        settings: the flags, which are noted.
        first_step: number of the next step; 1 for a new run, which takes the place of an earlier one of this name.
    """
    if not settings.log_with or not accelerator.is_main_process:
        return
    folder = settings.log_dir / run_name(settings.out)
    ids = _run_ids(folder, new=first_step == 1)
    accelerator.log_with = [_open_tracker(kind, settings, first_step, ids) for kind in settings.log_with]
    noted = settings.model_dump(mode="json", exclude={"overwrite", "log_with", "log_dir"})
    plain = {key: v if isinstance(v, bool | int | float | str) else json.dumps(v) for key, v in noted.items()}
    accelerator.init_trackers(PROJECT, config=plain if first_step == 1 else None)
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow":
            ids["mlflow"] = tracker.tracker.info.run_id
    write_text(folder / _IDS, json.dumps(ids) + "\n")
    log(f"curves: {_how_to_look(settings)}")


def log_figures(accelerator: Accelerator, figures: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Notes figures, each (step, value by name); nothing where nothing is tracked."""
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow":
            _log_to_mlflow(tracker, figures)
            continue
        for step, values in figures:
            tracker.log(dict(values), step=step)


def log_picture(
    accelerator: Accelerator, settings: TrainSettings, name: str, picture: np.ndarray, *, step: int
) -> None:
    """Notes a picture, H×W×3 uint8, at a step."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [picture]}, step=step)
        else:  # Accelerate's tracker of MLflow takes files
            path = settings.log_dir / run_name(settings.out) / f"{name}-{step:06d}.png"
            Image.fromarray(picture).save(path)
            tracker.log_artifact(str(path), name)


def end_tracking(accelerator: Accelerator, manifest: Manifest) -> None:
    """Notes what the sealed bundle is worth, and closes the trackers."""
    figures: dict[str, float] = {f"{m.name}_{m.split}": m.value for m in manifest.metrics}
    figures |= {"parameters": manifest.parameters, "macs": manifest.macs}
    if manifest.output.activation == "sigmoid":
        figures["threshold"] = manifest.output.threshold
    for tracker in accelerator.trackers:
        # Without a step: these are of the bundle, not of a moment.
        tracker.log({f"final/{name}": value for name, value in figures.items()})
        # Not `end_training`, which would also part the processes.
        tracker.finish()


def _run_ids(folder: Path, *, new: bool) -> dict[str, str]:
    """What MLflow and Weights & Biases know the run by; kept, so that a resumed run is the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not new and (folder / _IDS).is_file():
        with reading(str(folder / _IDS), "names of this run", remedy="remove it to begin a new curve"):
            return TypeAdapter(dict[str, str]).validate_json((folder / _IDS).read_bytes())
    return {"wandb": uuid.uuid4().hex[:8]}


def _open_tracker(
    kind: str, settings: TrainSettings, first_step: int, ids: Mapping[str, str]
) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    name = run_name(settings.out)
    if kind == "tensorboard":
        # Readers drop what a killed run noted after its checkpoint, and all of an earlier run of this name.
        return TensorBoardTracker(name, settings.log_dir, purge_step=first_step)
    if kind == "mlflow":
        _keep_mlflow_local(settings.log_dir)
        files = (settings.log_dir.resolve() / "mlflow-files").as_uri()
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else files  # a server has a place of its own
        return MLflowTracker(PROJECT, logging_dir=local, run_id=ids.get("mlflow"), run_name=name)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    online = os.environ.get("WANDB_MODE", "offline") == "online"
    more: dict[str, Any] = {"resume": "allow"} if online else {}
    return WandBTracker(
        PROJECT,
        name=name,
        id=ids.get("wandb"),
        dir=str(settings.log_dir),
        mode=os.environ.get("WANDB_MODE", "offline"),
        **more,
    )


def _keep_mlflow_local(log_dir: Path) -> None:
    """A database in `log_dir`, where the user names no other store, and no telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{log_dir.resolve() / 'mlflow.db'}")


def _log_to_mlflow(tracker: GeneralTracker, figures: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    # By its client in batches: one call a step takes longer than the step of a small student (60 ms, MLflow 3.17).
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, step) for step, values in figures for name, value in values.items()]
    for start in range(0, len(metrics), _MLFLOW_BATCH):
        MlflowClient().log_batch(tracker.tracker.info.run_id, metrics[start : start + _MLFLOW_BATCH])


def _how_to_look(settings: TrainSettings) -> str:
    commands = {
        "tensorboard": f"tensorboard --logdir {settings.log_dir}",
        "mlflow": f"mlflow ui --backend-store-uri sqlite:///{settings.log_dir / 'mlflow.db'}",
        "wandb": f"wandb sync {settings.log_dir / 'wandb'}/offline-run-* (sends pictures and settings to its server)",
    }
    return "; ".join(commands[kind] for kind in settings.log_with)
