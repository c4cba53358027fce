"""A model's estimate of its own mask as a traffic light: a colour, its word, and what neither can promise."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from segcore.picture.quality import QualityModel

GREEN_FROM = 0.9
"""Expected Dice from which the light is green; `runtime.predict --below` passes on what is less."""
RED_BELOW = 0.8
"""Expected Dice below which it is red: parts of the organ are likely missed, or something else is marked."""


@dataclass(frozen=True)
class Light:
    """One state of the light; `colour` is also its style on the page."""

    colour: str
    word: str
    advice: str


GREEN = Light("green", "likely good", "The outline probably fits; look at it all the same.")
AMBER = Light("amber", "check the outline", "Part of the outline may be off; compare it with the picture.")
RED = Light(
    "red", "do not rely on it", "The outline is probably wrong, or this is no picture for this model."
)


def light_of(quality: float) -> Light:
    """The light for an expected Dice, 0–1, as the card shows it: to two decimals."""
    shown = round(quality, 2)
    if shown >= GREEN_FROM:
        return GREEN
    return AMBER if shown >= RED_BELOW else RED


def light_card(quality: float, model: QualityModel) -> str:
    """The light as HTML: lamp, word, number, meaning, and its limits.

    Args:
        quality: expected Dice, 0–1.
        model: what estimated it; its error is shown.
    """
    light = light_of(quality)
    lamps = "".join("<i class='on'></i>" if lamp is light else "<i></i>" for lamp in (RED, AMBER, GREEN))
    return (
        f"<div class='light {light.colour}'><span class='lamps' aria-hidden='true'>{lamps}</span><div>"
        f"<p><strong>{light.colour.capitalize()}: {escape(light.word)}</strong></p>"
        f"<p>Expected overlap with a careful reader (Dice): <strong>{quality:.2f}</strong></p>"
        f"<p>{escape(light.advice)}</p>"
        f"<p class='hint'>{escape(limits(model))}</p></div></div>"
    )


def limits(model: QualityModel) -> str:
    """What the estimate is, and what it is not."""
    return (
        f"The model's own estimate, fitted on {model.cases} validation cases; mean error ±{model.error:.3f} on "
        f"pictures like those, ±{model.error_degraded:.3f} on degraded ones. "
        "A picture unlike the training pictures can still fool it."
    )
