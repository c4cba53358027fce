"""The flags of `python -m teacher.train`, and which of them go together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from segcore.errors import InputError
from segcore.learn.settings import TrainSettings

SystemName = Literal[
    "s2agscunet",
    "sam2-unet",
    "sam2-lora",
    "sam2-adapter",
    "sam2-med2d",
    "sam2-points",
    "sam2-zeroshot",
    "sam2-memory",
    "unet",
    "lightunet",
]
EncoderSize = Literal["tiny", "small", "base+", "large"]
"""Sizes of SAM 2.1's Hiera."""
ImageNetEncoder = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
EncoderName = Literal[EncoderSize, "litemedsam", ImageNetEncoder]
Tune = Literal[
    "lora", "dora", "rslora", "ia3", "adapter", "adapter-parallel", "adapter-channel-space", "bitfit", "decoder", "all"
]  # fmt: skip
AutomaticPrompt = Literal["points", "box", "both"]
_ANY: tuple[Tune, ...] = get_args(Tune)
TUNES: dict[SystemName, tuple[Tune, ...]] = {
    "s2agscunet": ("lora", *_ANY),
    "sam2-unet": ("adapter", *_ANY),
    "sam2-lora": ("lora", *_ANY),
    "sam2-adapter": ("adapter-parallel", *_ANY),
    "sam2-med2d": ("adapter-channel-space", *_ANY),
    "sam2-points": ("decoder", *_ANY),
    "sam2-zeroshot": ("decoder",),
    "sam2-memory": ("lora", *_ANY),
    "unet": ("all", *_ANY),
    "lightunet": ("all",),
}
"""System → its own tuning, which is the default, and what else it can do."""
CONTROLS: tuple[SystemName, ...] = ("unet", "lightunet")
"""Systems that need no encoder."""
ON_ANY_ENCODER: tuple[SystemName, ...] = ("unet", "s2agscunet", "sam2-unet")
"""Systems with a U-Net's way up, which stands on any pyramid; the others need SAM's prompt encoder and mask decoder."""
WITHOUT_ATTENTION: tuple[EncoderName, ...] = get_args(ImageNetEncoder)
"""Encoders of convolutions, in which there is nothing that LoRA or an adapter between blocks could stand on."""
CONVOLUTION_TUNES: tuple[Tune, ...] = ("all", "decoder", "bitfit")
"""What those can be tuned by."""
PACKAGED: tuple[EncoderName, ...] = ("litemedsam", *get_args(ImageNetEncoder))
"""Encoders whose weights an installed package holds: `--weights package`."""

REMEMBERS: SystemName = "sam2-memory"
"""The system that labels whole volumes."""
PROMPTED_SYSTEMS: tuple[SystemName, ...] = ("sam2-med2d", "sam2-points", "sam2-zeroshot", REMEMBERS)
"""Systems that answer prompts: about a picture, or a volume."""


class TeacherSettings(TrainSettings):
    """Train a teacher: SAM 2 adapted in one of the literature's ways, or a control without it."""

    system: SystemName = "s2agscunet"
    """The teacher; docs/teachers.md tells what each is. unet and lightunet are controls without SAM 2."""
    weights: str | None = None
    """Where the encoder's weights come from: a file, package (out of an installed package, with a pinned hash, for the
    encoders that have one), a hub name such as facebook/sam2.1-hiera-tiny for SAM 2.1, with @REVISION and #SHA256
    behind it for that file alone, or none. Must be given for every system with an encoder."""
    encoder: EncoderName | None = None
    """The pretrained encoder: tiny, small, base+ or large of SAM 2.1's Hiera; litemedsam, of medical pictures, for all
    but sam2-memory; or efficientnet-lite0, -lite1, -lite2 of ImageNet for unet, s2agscunet and sam2-unet. By default
    tiny, and none for unet, which is then the plain U-Net."""
    tune: Tune | None = None
    """What of the encoder is trained: updates that peft makes (lora, dora, rslora, ia3), adapters before each block,
    two of them in each block (adapter-parallel) or over channels and space, its biases (bitfit), nothing but the
    decoder, or everything. By default the system's own: lora, adapter, adapter-parallel, adapter-channel-space or
    decoder; all for unet and for encoders of convolutions."""
    lora_rank: int = Field(4, ge=1)
    """Rank of lora, dora and rslora."""
    lora_target: Literal["attention", "q-v"] | None = None
    """What those update: all of each attention (qkv and the output projection), or its queries and values alone. By
    default q-v for sam2-lora, else attention."""
    adapter_width: int = Field(32, ge=1)
    """Width of the adapters' bottleneck."""
    unet_width: int | None = Field(None, ge=1)
    """Channels of a U-Net's first level; by default 64 for unet, 8 for lightunet."""

    prompt: AutomaticPrompt | None = None
    """What a promptable teacher (sam2-med2d, sam2-points, sam2-zeroshot) asks itself with, where no human does: points
    of each class's mean training mask, a box around it, or both. sam2-points is trained with these. By default points;
    box for sam2-zeroshot with litemedsam, which was trained with boxes alone."""
    points: int = Field(5, ge=1, le=8)
    """How many such points a class."""
    rounds: int = Field(3, ge=1, le=9)
    """Questions a picture and step while sam2-med2d is trained: a box or a point, then points where the last answer
    was wrong."""

    clip_slices: int = Field(5, ge=2)
    """Consecutive slices of a volume that sam2-memory learns from at a time; --batch-size then counts such clips."""

    cached_views: int | None = Field(None, ge=0)
    """Where nothing of the encoder is tuned (--tune decoder): how many views of each training picture go through it,
    once, the picture as it is and augmented ones; training reads their features from the cache. 0 runs the encoder in
    every step, with new views. By default 8, fewer in short trainings or where they do not fit in --cache-gib."""
    cache: Path | None = None
    """Folder of what can be computed again; by default sam2edge in the user's folder of caches, such as
    ~/.cache/sam2edge. Delete it when you like."""
    cache_gib: float = Field(10.0, gt=0)
    """Most that the cache may hold, in GiB; what was not used for longest goes first."""

    checkpointing: bool = False
    """Recompute a SAM 2 encoder's blocks in the backward pass: less memory, a third more time, the same weights."""

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder: in all systems but a U-Net that is given none."""
        return self.encoder is not None or self.system not in CONTROLS

    @property
    def encoder_name(self) -> EncoderName:
        """The encoder: `encoder`, or the systems' own; where there is one."""
        return self.encoder or "tiny"

    @property
    def automatic_prompt(self) -> AutomaticPrompt:
        """What a promptable teacher asks itself with: `prompt`, or what suits the model."""
        boxes = self.system == "sam2-zeroshot" and self.encoder == "litemedsam"
        return self.prompt or ("box" if boxes else "points")

    @property
    def able(self) -> tuple[Tune, ...]:
        """How system and encoder can be tuned, the default first."""
        if not self.has_encoder:
            return ("all",)
        return CONVOLUTION_TUNES if self.encoder in WITHOUT_ATTENTION else TUNES[self.system]

    @property
    def tuned(self) -> Tune:
        """What is trained of the encoder: `tune`, or the system's own."""
        return self.tune or self.able[0]

    @property
    def keeps_features(self) -> bool:
        """Whether features may be computed once: there is an encoder, it is frozen, and pictures come one by one."""
        alone = self.system not in ("sam2-zeroshot", REMEMBERS)  # one trains nothing, the other on volumes
        return self.has_encoder and self.tuned == "decoder" and alone

    def recipe(self) -> dict[str, object]:
        """See `TrainSettings`; where features are kept changes nothing."""
        return {name: value for name, value in super().recipe().items() if name != "cache"}


def check_weighing(settings: TeacherSettings) -> None:
    """Checks that the system's loss has a place for weights of pixels.

    Raises:
        InputError: it has none.
    """
    flags = {
        "--class-weight": bool(settings.class_weight),
        "--small-lesion-weight": settings.small_lesion_weight != 1,
    }
    for flag, used in flags.items():
        if used and settings.system in PROMPTED_SYSTEMS:
            able = ", ".join(name for name in TUNES if name not in PROMPTED_SYSTEMS)
            raise InputError(
                f"{flag}: must be for a system that marks a whole picture at once ({able}), got --system "
                f"{settings.system}, which is taught one thing at a time; omit it"
            )


def check_settings(settings: TeacherSettings) -> None:
    """Checks what only several flags together say.

    Raises:
        InputError: a tuning that the system cannot do, or weights that are missing or unwanted.
    """
    check_weighing(settings)
    encoder = settings.encoder_name
    if settings.encoder and settings.system == "lightunet":
        raise InputError(
            f"--encoder {settings.encoder}: must be omitted for --system lightunet, which has none; use --system unet"
        )
    if encoder in WITHOUT_ATTENTION and settings.system not in ON_ANY_ENCODER:
        raise InputError(
            f"--encoder {encoder}: must be of the SAM family for --system {settings.system}, which needs its mask "
            f"decoder; use --system {', '.join(ON_ANY_ENCODER)}, or another encoder"
        )
    if encoder == "litemedsam" and settings.system == REMEMBERS:
        raise InputError(
            f"--encoder litemedsam: must be of SAM 2 for --system {REMEMBERS}, which needs its memory; use --encoder "
            f"{', '.join(get_args(EncoderSize))}, or another system"
        )
    if settings.tuned not in settings.able:
        able = " or ".join(dict.fromkeys(settings.able))
        where = f"--encoder {encoder}" if encoder in WITHOUT_ATTENTION else f"--system {settings.system}"
        raise InputError(f"--tune {settings.tuned}: must be {able} for {where}; leave --tune away")
    if settings.unet_width and settings.has_encoder:
        got = f"--encoder {encoder}" if settings.system in CONTROLS else f"--system {settings.system}"
        raise InputError(
            f"--unet-width {settings.unet_width}: must be for {' or '.join(CONTROLS)}, got {got}; leave it away"
        )
    if settings.cached_views and not settings.keeps_features:
        got = f"--system {settings.system}" + (f" --tune {settings.tuned}" if settings.has_encoder else "")
        raise InputError(
            f"--cached-views {settings.cached_views}: must be for an encoder that is frozen while a decoder learns "
            f"from single pictures (--tune decoder), got {got}; omit --cached-views"
        )
    if not settings.has_encoder:
        if settings.weights not in (None, "none"):
            raise InputError(
                f"--weights {settings.weights}: must be none for --system {settings.system}, which has no part of "
                "SAM 2; leave --weights away"
            )
        return
    if settings.weights == "package" and encoder not in PACKAGED:
        raise InputError(
            f"--weights package: must be for --encoder {', '.join(PACKAGED)}, got {encoder}, which no package holds; "
            "give SAM 2.1's weights, such as facebook/sam2.1-hiera-tiny"
        )
    if settings.weights is None and encoder in PACKAGED:
        raise InputError(
            f"--weights: must be given for --encoder {encoder}; give package, the path of its weights, or none with "
            "--tune all"
        )
    if settings.weights is None:
        raise InputError(
            f"--weights: must be given for --system {settings.system}; give SAM 2.1's weights, or none with --tune all"
        )
    published = "package" if encoder in PACKAGED else "SAM 2.1's weights"
    if settings.weights == "none" and settings.system == "sam2-zeroshot":
        raise InputError(
            f"--weights none: must have weights for --system sam2-zeroshot, which trains nothing; give {published}"
        )
    if settings.weights == "none" and settings.tuned != "all":
        raise InputError(
            f"--weights none: must have weights for --tune {settings.tuned}, which leaves the encoder as it is; "
            f"give {published}, or add --tune all to train everything from random weights"
        )
