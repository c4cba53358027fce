"""Trains a teacher: SAM 2, adapted with few parameters in one of the literature's ways, or a control without it.

`python -m teacher.train --system NAME --data D --weights facebook/sam2.1-hiera-tiny --out O`
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from segcore.command import log, print_result, run_command
from segcore.dataset.dataset import Dataset, open_dataset
from segcore.outfolder import out_folder
from teacher.settings import TeacherSettings, check_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from segcore.learn.augment import Sample
    from segcore.picture.preprocess import InputSpec
    from teacher.features import FrozenTraining
    from teacher.system import System


_ADAPTER = "adapter"


@dataclass(frozen=True)
class _TrainingResult:
    dice_val: float | None
    trained_parameters: int
    parameters: int


def main(settings: TeacherSettings) -> None:
    """Runs the stage; see the module."""
    check_settings(settings)
    settings.check_tracking()
    # The bundle says what was trained.
    settings = settings.model_copy(
        update={
            "tune": settings.tuned,
            "encoder": settings.encoder_name if settings.has_encoder else None,
            "prompt": settings.automatic_prompt,
        }
    )
    dataset = open_dataset(settings.data, seed=settings.split_seed, fold=settings.fold)
    recipe = {**settings.recipe(), "data_sha256": dataset.sha256}
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        from segcore.learn.seal import sealed_before

        sealed = sealed_before(folder)
        if sealed:
            dice = sealed.metric("dice_mean", "val")
            trained = _TrainingResult(dice, sealed.trained_parameters, sealed.parameters)
        else:
            trained = _train_teacher(settings, dataset, folder)
    log(f"wrote {settings.out}")
    print_result(
        bundle=str(settings.out),
        dice_val=trained.dice_val,
        trained_parameters=trained.trained_parameters,
        parameters=trained.parameters,
    )


def _train_teacher(settings: TeacherSettings, dataset: Dataset, folder: Path) -> _TrainingResult:
    import torch

    from segcore.learn.augment import Augmentation
    from segcore.learn.evaluate import Validator
    from segcore.learn.loader import TrainingSet, check_classes, choose_cases, training_input
    from segcore.learn.loop import fit, open_accelerator
    from segcore.learn.seal import Origin, seal_trained
    from segcore.learn.tracking import end_tracking
    from teacher.features import ViewSet, data_rows, frozen_encoder, open_features
    from teacher.system import Task, mean_std_of, system_module
    from teacher.tuning.tune import recompute_blocks

    split, held = choose_cases(dataset, settings)
    weighing = settings.weighing(dataset.classes)
    cases = [case for case in split if case.labelled]
    size = (settings.size, settings.size)
    module = system_module(settings.system)
    spec = training_input(
        cases, size, mean_std_of(settings), window=settings.window, resize_filter=settings.resize_filter
    )
    settings = settings.for_channels(spec.channels)
    torch.manual_seed(settings.seed)
    system: System = module.build_system(settings, Task(dataset.classes, spec, cases))
    network = system.network
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if settings.checkpointing:
        recompute_blocks(network)
    accelerator = open_accelerator(settings)
    validator = Validator(held, spec, system.output, len(dataset.classes), batch=settings.batch_size)
    log(
        f"{system.title}, {settings.tuned}: {trained:,} of {_count_parameters(network):,} parameters are trained; "
        f"{system.pretrained}; {len(cases)} training and {len(held)} validation images; {accelerator.device}"
    )

    def validate(network: nn.Module) -> float:
        if system.validate:
            return system.validate(network, validator)
        return validator.dice(system.view(network))

    features: FrozenTraining | None = None
    if trained:
        if system.training_set:
            data = system.training_set(settings.seed)
        else:
            augment = Augmentation(settings.transforms(spec.channels), with_soft=False)
            frozen, views = frozen_encoder(
                system,
                spec,
                settings,
                accelerator.device,
                training=len(cases),
                validation=len(held),
                processes=accelerator.num_processes,
            )
            settings = settings.model_copy(update={"cached_views": views})
            data = TrainingSet(
                cases,
                spec,
                classes=len(dataset.classes),
                seed=settings.seed,
                augment=None if frozen else augment,
            )
            check_classes(data.classes_shown, dataset.classes, len(cases), settings)
            if weighing:
                data.weigh(dataset.classes, weighing)
            if frozen:
                view_set = ViewSet(data, data_rows(dataset, cases), augment)
                with accelerator.local_main_process_first():  # the others find what it has computed
                    features = open_features(system, frozen, dataset, view_set, validator, settings)
        train = partial(fit, network, settings=settings, folder=folder, accelerator=accelerator)
        if features:
            with features.without_encoder():
                train(
                    cast(TrainingSet, features.data),
                    loss_of=features.loss,
                    validate=features.validate,
                    draw=features.draw,
                )
        else:
            train(
                data,
                loss_of=_loss_on_batch(system, spec, accelerator.device),
                validate=validate,
                draw=lambda network: validator.outlines(system.view(network)),
            )
    dice: float | None = 0.0
    if accelerator.is_main_process:
        if system.save_adapters:
            # Before they are merged into the weights below.
            system.save_adapters(folder / _ADAPTER)
        manifest = seal_trained(
            folder,
            # A copy, because merging is in place and the parameters are counted as they were trained.
            system.plain(copy.deepcopy(network)),
            Origin(
                name=system.title + settings.label_note,
                kind="teacher",
                architecture=settings.system,
                architecture_settings=system.settings,
                pretrained=system.pretrained,
                trained_parameters=trained,
                prompt=system.prompt,
            ),
            dataset=dataset,
            validator=validator,
            settings=settings.model_copy(update={"cache": None}),  # where this machine has it
            thresholds=system.thresholds,
            also=(_ADAPTER,),
        )
        end_tracking(accelerator, manifest)
        dice = manifest.metric("dice_mean", "val")
    accelerator.wait_for_everyone()
    return _TrainingResult(dice, trained, _count_parameters(network))


def _loss_on_batch(
    system: System, spec: InputSpec, device: torch.device
) -> Callable[[nn.Module, Sample], Tensor]:
    from segcore.learn.network import normaliser

    normalised = normaliser(spec, device)
    return lambda network, sample: system.loss(network, normalised(sample["image"]), sample)


def _count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    run_command(main, TeacherSettings, "python -m teacher.train")
