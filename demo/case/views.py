"""What a session shows, in the forms that the viewer and the case page take."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from demo.case.content import CaseView
from demo.session.answers import ModelAnswer
from demo.session.prompt_dialogue import prompt_json
from demo.session.reader_session import ReaderSession
from demo.viewer.scene import ModelView, ViewerScene, offered_windows, scene_json
from segcore.measure.masks import measure


def viewer_value(session: ReaderSession) -> dict[str, Any]:
    """The viewer's value for the shown slice."""
    scan = session.scan
    assert scan is not None
    picture = scan.values(session.slice_index)
    scene = ViewerScene(
        key=str(session.version),
        name=scan.name,
        slice_index=session.slice_index,
        slices=scan.slices,
        picture=picture,
        windows=offered_windows(picture, own=scan.windows, modality=scan.modality),
        spacing_mm=scan.spacing_mm,
        models=tuple(
            _model_view(n, a) for n, a in zip(session.model_names, session.current_answers, strict=True)
        ),
        truth=session.truth_slice,
        unit="HU" if scan.modality == "CT" else "",
        prompt=None if session.dialogue is None else prompt_json(session.dialogue),
    )
    return scene_json(scene)


def _model_view(name: str, answer: ModelAnswer) -> ModelView:
    output = answer.manifest.output
    return ModelView(
        title=name,
        kind=answer.manifest.kind,
        probability=answer.foreground,
        activation=output.activation,
        threshold=output.threshold,
        classes=answer.manifest.classes,
        quality=answer.quality,
        mask=None if answer.prompt_summary is None else answer.mask,
        prompt_iou=None if answer.prompt_summary is None else answer.prompt_summary.estimated_iou,
    )


def case_view(session: ReaderSession) -> CaseView:
    """The shown slice for the case page; the file's name stays out, it may be a patient's."""
    scan = session.scan
    assert scan is not None
    spacing, reference = scan.spacing_mm, session.models.reference_for
    return CaseView(
        name="",
        time=datetime.now(),
        image=scan.display(session.slice_index),
        answers=session.shown_answers,
        hashes=tuple(session.models.sha256(name) for name in session.model_names),
        slice_index=session.slice_index,
        slices=scan.slices,
        spacing_mm=spacing,
        truth=session.truth_slice,
        threshold=session.threshold,
        measurements=tuple(
            measure(a.mask, a.manifest.classes, spacing_mm=spacing, reference=reference(a.manifest.classes))
            for a in session.shown_answers
        ),
        volume=tuple(
            session.measured_volume(session.volume_masks[name], session.models.manifest(name).classes)
            for name in session.model_names
            if name in session.volume_masks
        ),
    )
