"""What a session shows, in the forms that the viewer and the case page take."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from demo.case_view import CaseView
from demo.compare import Answer
from demo.prompting import prompt_payload
from demo.session import Session
from demo.viewer import ModelView, ViewerScene, offered_windows, scene_json
from segcore.measurements import measure


def viewer_value(session: Session) -> dict[str, Any]:
    """The viewer's value for the shown slice."""
    scan = session.scan
    assert scan is not None
    picture = scan.values(session.index)
    scene = ViewerScene(
        key=str(session.version),
        name=scan.name,
        slice_index=session.index,
        slices=scan.slices,
        picture=picture,
        windows=offered_windows(picture, own=scan.windows, modality=scan.modality),
        spacing_mm=scan.spacing_mm,
        models=tuple(_model_view(n, a) for n, a in zip(session.chosen, session.current, strict=True)),
        truth=session.truth_slice,
        unit="HU" if scan.modality == "CT" else "",
        prompt=None if session.prompting is None else prompt_payload(session.prompting),
    )
    return scene_json(scene)


def _model_view(name: str, answer: Answer) -> ModelView:
    output = answer.manifest.output
    return ModelView(
        title=name,
        kind=answer.manifest.kind,
        probability=answer.foreground,
        activation=output.activation,
        threshold=output.threshold,
        classes=answer.manifest.classes,
        quality=answer.quality,
        mask=None if answer.prompted is None else answer.mask,
        prompted=None if answer.prompted is None else answer.prompted.estimated_iou,
    )


def case_view(session: Session) -> CaseView:
    """The shown slice for the case page; the file's name stays out, it may be a patient's."""
    scan = session.scan
    assert scan is not None
    spacing, reference = scan.spacing_mm, session.models.reference_for
    return CaseView(
        name="",
        time=datetime.now(),
        image=scan.display(session.index),
        answers=session.shown,
        hashes=tuple(session.models.sha256(name) for name in session.chosen),
        slice_index=session.index,
        slices=scan.slices,
        spacing_mm=spacing,
        truth=session.truth_slice,
        threshold=session.threshold,
        measurements=tuple(
            measure(a.mask, a.manifest.classes, spacing_mm=spacing, reference=reference(a.manifest.classes))
            for a in session.shown
        ),
        volume=tuple(
            session.measured_volume(session.volumes[name], session.models.manifest(name).classes)
            for name in session.chosen
            if name in session.volumes
        ),
    )
