"""SAM 2: how it is built, the model that answers prompts about single pictures, and its weights.

The only file that imports sam2, Meta's package, which also has the parts of SAM 1 that its relatives are made with
(`build_sam_heads`). `import sam2` initialises Hydra for the whole process, so it happens
inside the functions, and the model's settings are read from sam2's own YAML without Hydra. What is built has random
weights until `load_for_system` or `load_sam2_weights` fills it, from Meta's files or the hub.

Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024; Ryali et al., Hiera, ICML 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from segcore.bundle.folder import hash_file
from segcore.bundle.story import NO_WEIGHTS
from segcore.command import log
from segcore.errors import InputError, is_damage, need
from teacher.encoders.package_weights import check_state, read_tensors
from teacher.settings import EncoderName, EncoderSize, TeacherSettings

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN_STD = {1: IMAGENET_MEAN_STD, 3: IMAGENET_MEAN_STD}
"""What SAM 2's encoder was trained with, for grey pictures too."""
STRIDE = 4  # of the masks' logits
MASKS = 4
"""Candidates of SAM 2's mask decoder: one for a clear prompt, three for an ambiguous one."""
TRUNK = "image_encoder.trunk."
_CONFIGS: dict[EncoderName, str] = {
    "tiny": "sam2.1_hiera_t.yaml",
    "small": "sam2.1_hiera_s.yaml",
    "base+": "sam2.1_hiera_b+.yaml",
    "large": "sam2.1_hiera_l.yaml",
}


def build_encoder(size: EncoderName) -> nn.Module:
    """Hiera, SAM 2.1's image encoder without its neck.

    N×3×H×W, H and W multiples of 32 → four feature maps at strides 4, 8, 16, 32; `channel_list` gives their channels,
    deepest first.

    Raises:
        InputError: the sam2 package is not installed.
    """
    encoder: nn.Module = _instantiate(_read_config(size)["image_encoder"]["trunk"])
    return encoder


def build_sam2(size: EncoderName, image_px: int) -> Any:
    """All of SAM 2.1: sam2's `SAM2Base`, for square pictures of `image_px`, a multiple of 32.

    Its parts have the names of Meta's files: `image_encoder` (with `trunk` and `neck`), `sam_prompt_encoder`,
    `sam_mask_decoder`, `memory_attention`, `memory_encoder` and some of its own parameters.

    Raises:
        InputError: the sam2 package is not installed.
    """
    config = _read_config(size)
    config["image_size"] = image_px
    for attention in ("self_attention", "cross_attention"):  # rotary positions of a stride-16 map
        config["memory_attention"]["layer"][attention]["feat_sizes"] = [image_px // 16, image_px // 16]
    sam2 = _instantiate(config)
    join_channel_norms(sam2)
    return sam2


def build_sam_heads(image_px: int, features_px: int) -> tuple[Any, Any]:
    """SAM 1's prompt encoder and mask decoder, for square pictures; what SAM 2 added to them is left out.

    Args:
        image_px: of the picture.
        features_px: of its features, N×256×h×w.

    Raises:
        InputError: the sam2 package is not installed.
    """
    # Source of the numbers: Kirillov et al., Segment Anything, ICCV 2023, as its `build_sam` has them.
    transformer = {"_target_": "sam2.modeling.sam.transformer.TwoWayTransformer",
                   "depth": 2, "embedding_dim": 256, "mlp_dim": 2048, "num_heads": 8}  # fmt: skip
    prompts = {"_target_": "sam2.modeling.sam.prompt_encoder.PromptEncoder",
               "embed_dim": 256, "image_embedding_size": [features_px] * 2,
               "input_image_size": [image_px] * 2, "mask_in_chans": 16}  # fmt: skip
    masks = {"_target_": "sam2.modeling.sam.mask_decoder.MaskDecoder",
             "transformer_dim": 256, "transformer": transformer, "num_multimask_outputs": MASKS - 1}  # fmt: skip
    heads = nn.ModuleList([_instantiate(prompts), _instantiate(masks)])
    join_channel_norms(heads)
    return heads[0], heads[1]


class ChannelNorm(nn.Module):
    """N×C×H×W, normalised over C at each pixel, by one operator.

    Shares the parameters of sam2's `LayerNorm2d`, which it replaces. That one is made of seven operators, and squares
    its input outside any normalisation, which 16 bits do not hold (NVIDIA/TensorRT#3657, #4723).
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)  # N H W C
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def join_channel_norms(network: nn.Module) -> None:
    """Replaces, in place, every `LayerNorm2d` of sam2; the names of its parameters stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LayerNorm2d":
                setattr(module, name, ChannelNorm(child))


def _read_config(size: EncoderName) -> dict[str, Any]:
    try:
        text = resources.files("sam2").joinpath(f"configs/sam2.1/{_CONFIGS[size]}").read_text()
    except ModuleNotFoundError as error:
        if error.name != "sam2":
            raise
        raise need("sam2", "teacher") from None
    return dict(yaml.safe_load(text)["model"])


def _instantiate(config: Any) -> Any:
    """What Hydra would build: a mapping with `_target_` is a call of that class of sam2."""
    if isinstance(config, list):
        return [_instantiate(one) for one in config]
    if isinstance(config, str) and re.fullmatch(r"\d+e-?\d+", config):
        return float(config)  # 1e-6 is a number in YAML 1.2, which Hydra reads, and text in PyYAML's 1.1
    if not isinstance(config, dict):
        return config
    built = {key: _instantiate(value) for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return built
    module, _, name = config["_target_"].rpartition(".")
    assert module.startswith("sam2."), module
    return getattr(import_module(module), name)(**built)


# Prompts about single pictures: an encoder that looks once, and a decoder that answers.


class Embedding(NamedTuple):
    """What the encoder saw of N pictures: features at strides 16, 8 and 4.

    Attributes:
        image: N×256×H/16×W/16.
        middle: N×64×H/8×W/8.
        fine: N×32×H/4×W/4.
    """

    image: Tensor
    middle: Tensor
    fine: Tensor


class SamEmbedding(NamedTuple):
    """What the encoder of a model like SAM 1 saw of N pictures: N×256×h×w."""

    image: Tensor


AnyEmbedding = Embedding | SamEmbedding
"""Either; the names of its fields are those of an exported decoder's inputs."""


def map_features(embedding: AnyEmbedding, change: Callable[[Tensor], Tensor]) -> AnyEmbedding:
    """The same of every map of features."""
    kind: type[Any] = type(embedding)
    changed: AnyEmbedding = kind(*(change(features) for features in embedding))
    return changed


class Answers(NamedTuple):
    """Candidate masks for N prompts.

    Attributes:
        logits: N×M×H/s×W/s, s the model's `stride`, 4 for SAM 2.
        iou: N×M, the decoder's own estimate, 0–1.
    """

    logits: Tensor
    iou: Tensor


PromptKind = Literal["point", "box", "mask"]


class ImageModel(Protocol):
    """A SAM that answers prompts about single pictures: `Sam2ImageModel`, or a relative of SAM 1.

    Attributes:
        title: for tables.
        stride: of its answers' logits.
        prompts: kinds that it was trained with.
        image_encoder: its `trunk` is the encoder of `teacher.encoder.build_encoder`.
        sam_prompt_encoder: SAM's.
        sam_mask_decoder: SAM's, or SAM 2's.
    """

    title: str
    stride: int
    prompts: tuple[PromptKind, ...]
    image_encoder: Any
    sam_prompt_encoder: Any
    sam_mask_decoder: Any

    @property
    def without_mask(self) -> Tensor:
        """D, what is added to the features where no mask is given."""
        ...

    def train_encoder(self, trained: bool) -> None:
        """Unfreezes the encoder and what stands between it and the decoder, or freezes both."""
        ...

    def encode(self, x: Tensor) -> AnyEmbedding:
        """N×3×H×W normalised → features."""
        ...

    def decode(
        self,
        embedding: Any,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """Candidates for one prompt a picture; see `Sam2ImageModel.decode`."""
        ...


@runtime_checkable
class Promptable(Protocol):
    """What a promptable bundle's network offers beside being called with a picture."""

    def encode(self, x: Tensor) -> AnyEmbedding:
        """N×3×H×W normalised → features."""
        ...

    def decode(
        self, embedding: Any, points: Tensor, labels: Tensor, mask: Tensor, has_mask: Tensor
    ) -> Answers:
        """Candidates for one prompt a picture; see `Sam2ImageModel.decode`."""
        ...


class Sam2ImageModel(nn.Module):
    """SAM 2.1 without its memory, for square pictures of one size. Its parts have the names of Meta's files.

    Attributes:
        title: for tables.
        stride: of its answers' logits.
        prompts: kinds that it was trained with.
    """

    stride = STRIDE
    prompts: tuple[PromptKind, ...] = ("point", "box", "mask")
    image_encoder: Any
    sam_prompt_encoder: Any
    sam_mask_decoder: Any
    no_mem_embed: Tensor

    def __init__(self, size: EncoderName, image_px: int) -> None:
        super().__init__()
        sam2 = build_sam2(size, image_px)
        self.title = f"SAM 2 {size}"
        self.image_px = image_px
        self.image_encoder = sam2.image_encoder
        self.sam_prompt_encoder = sam2.sam_prompt_encoder
        self.sam_mask_decoder = sam2.sam_mask_decoder
        self.no_mem_embed = sam2.no_mem_embed

    @property
    def without_mask(self) -> Tensor:
        """D, what is added to the features where no mask is given: "no mask" and "no earlier frame"."""
        found: Tensor = self.sam_prompt_encoder.no_mask_embed.weight[0] + self.no_mem_embed.flatten()
        return found

    def train_encoder(self, trained: bool) -> None:
        """Unfreezes the encoder, its neck and "no earlier frame", or freezes them."""
        self.image_encoder.requires_grad_(trained)
        self.no_mem_embed.requires_grad_(trained)

    def encode(self, x: Tensor) -> Embedding:
        """N×3×H×W normalised → features, as SAM 2's image predictor has them."""
        fine, middle, image = self.image_encoder(x)["backbone_fpn"]
        return self.embed(fine, middle, self.without_memory(image))

    def embed(self, fine: Tensor, middle: Tensor, image: Tensor) -> Embedding:
        """The encoder's maps, 256 channels each at strides 4, 8 and 16 → features for the mask decoder."""
        decoder = self.sam_mask_decoder
        return Embedding(image, decoder.conv_s1(middle), decoder.conv_s0(fine))

    def without_memory(self, image: Tensor) -> Tensor:
        """Features N×256×h×w at stride 16 with SAM 2's mark of "no earlier frame"."""
        return image + self.no_mem_embed.view(1, -1, 1, 1)

    def decode(
        self,
        embedding: Embedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> Answers:
        """Candidates for one prompt a picture.

        Args:
            embedding: of N pictures; to ask several prompts of one picture, repeat its features.
            points: N×P×2, (x, y) in the input's pixels.
            labels: N×P float, as `segcore.picture.prompts` numbers them.
            mask: N×1×H/4×W/4, the logits of an earlier answer; None where none is.
            has_mask: N×1 float, 1 where `mask` counts, so that one graph serves both; None where all do.

        Returns:
            `MASKS` candidates each, the single-mask answer first.
        """
        return self.decode_with_tokens(embedding, points, labels, mask, has_mask)[0]

    def decode_with_tokens(
        self,
        embedding: Embedding,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> tuple[Answers, Tensor]:
        """As `decode`, with the candidates' tokens, N×`MASKS`×256, which SAM 2's memory keeps."""
        return ask_decoder(
            self.sam_prompt_encoder, self.sam_mask_decoder, embedding.image, points, labels, mask, has_mask,
            skips=[embedding.fine, embedding.middle],
        )  # fmt: skip


build_image_model = Sam2ImageModel


def ask_decoder(
    prompts: Any,
    decoder: Any,
    image: Tensor,
    points: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    has_mask: Tensor | None,
    *,
    skips: list[Tensor] | None = None,
) -> tuple[Answers, Tensor]:
    """What a prompt encoder and a mask decoder make of features and one prompt a picture.

    Args:
        prompts: SAM's prompt encoder, SAM 2's or from `build_sam_heads`.
        decoder: the mask decoder of the same.
        image: features N×256×h×w.
        points: N×P×2; see `Sam2ImageModel.decode`, as for what follows.
        labels: N×P.
        mask: N×1×4h×4w.
        has_mask: N×1.
        skips: finer features that SAM 2's decoder takes.

    Returns:
        The candidates, and their tokens.
    """
    sparse = prompts._embed_points(points, labels, pad=True)  # N P+1 256
    none = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
    dense = none.expand(len(points), -1, *image.shape[2:])  # N 256 h w
    if mask is not None:
        given = prompts._embed_masks(mask)  # N 256 h w
        dense = given if has_mask is None else torch.where(has_mask[..., None, None] > 0, given, dense)
    logits, iou, tokens, _ = decoder.predict_masks(
        image_embeddings=image,
        image_pe=prompts.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=skips,
    )
    return Answers(logits, iou), tokens


# The weights: Meta's files, or the hub's.


class _Checkpoint(NamedTuple):
    repository: str
    file: str


_PUBLISHED: dict[EncoderName, _Checkpoint] = {
    "tiny": _Checkpoint("facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"),
    "small": _Checkpoint("facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt"),
    "base+": _Checkpoint("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt"),
    "large": _Checkpoint("facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt"),
}


_HUB_NAME = re.compile(r"(?P<repository>[^@#]+)(@(?P<revision>[\w./-]+))?(#(?P<sha256>[0-9a-f]{64}))?")


def load_for_system(model: nn.Module, settings: TeacherSettings, *, frozen: Sequence[str]) -> str:
    """Loads the weights that the flags name, and refuses those that lack a part which the system leaves as it is.

    Args:
        model: see `load_sam2_weights`.
        settings: the flags.
        frozen: parts that must not stay random, as `check_frozen_parts` takes them; what the system trains as a
            whole is not among them.

    Raises:
        InputError: as `load_sam2_weights` and `check_frozen_parts` do.
    """
    loaded = _load_parts(model, str(settings.weights), settings.encoder_name)
    check_frozen_parts(settings, loaded.absent, frozen)
    return _describe_origin(loaded, str(settings.weights))


def load_sam2_weights(model: nn.Module, weights: str, size: EncoderName) -> str:
    """Loads SAM 2's weights into a model whose parts have the names of Meta's files.

    A file may hold the encoder alone, as an encoder that was trained in house does: the other parts then keep their
    random weights, and that is said.

    Args:
        model: `Sam2ImageModel`, `SAM2Base`, …; what the file holds beside the model's parts is ignored.
        weights: a path (Meta's .pt, or .safetensors with the same names), a hub name, or "none".
        size: what the encoder was built as, for the message.

    Returns:
        Where the weights came from, for the manifest.

    Raises:
        InputError: no such file or model, no network, not a checkpoint, or of another model.
    """
    return _describe_origin(_load_parts(model, weights, size), weights)


def load_encoder_weights(encoder: nn.Module, weights: str, size: EncoderName) -> str:
    """Loads SAM 2's weights into an encoder from `build_encoder`; see `load_sam2_weights`."""
    parts = nn.Module()  # the encoder where Meta's files have it
    parts.image_encoder = nn.Module()
    parts.image_encoder.trunk = encoder
    return load_sam2_weights(parts, weights, size)


def check_frozen_parts(settings: TeacherSettings, absent: Sequence[str], frozen: Sequence[str]) -> None:
    """Checks that no part which stays frozen has random weights: it cannot be adapted. `--tune all` trains everything.

    Args:
        settings: the flags.
        absent: parts that the weights do not hold: "sam_mask_decoder", "image_encoder.neck", "no_mem_embed", …
        frozen: parts that the system leaves, or most of them, as they are.

    Raises:
        InputError: a frozen part is absent.
    """
    missing = [part for part in frozen if part in absent]
    if missing and settings.tuned != "all":
        otherwise = ", or add --tune all" if "all" in settings.able else ""
        raise InputError(
            f"--weights {settings.weights}: must hold {', '.join(missing)} for --system {settings.system}, which "
            f"leaves most of that as it is; give all of SAM 2.1, such as {_PUBLISHED[settings.encoder_name].repository}"
            + otherwise
        )


class _WeightsOrigin(NamedTuple):
    origin: str
    absent: list[str]


def _load_parts(model: nn.Module, weights: str, size: EncoderName) -> _WeightsOrigin:
    if weights == "none":
        return _WeightsOrigin(NO_WEIGHTS, [])
    path = _download_checkpoint(weights, size) if _is_hub_name(weights) else Path(weights)
    if not path.is_file():
        names = ", ".join(p.repository for p in _PUBLISHED.values())
        raise InputError(
            f"--weights {weights}: must be a .pt or .safetensors file, one of {names}, or none; no such file"
        )
    found, wanted = read_tensors(path), model.state_dict()
    _check_kind(found, weights)
    parts = {_part_of(name) for name in wanted}
    absent = sorted(part for part in parts if not any(_part_of(name) == part for name in found))
    found = {name: tensor for name, tensor in found.items() if _part_of(name) in parts}
    wanted = {name: tensor for name, tensor in wanted.items() if _part_of(name) not in absent}
    remedy = f"set --encoder to the weights' size ({', '.join(get_args(EncoderSize))})"
    check_state(found, wanted, weights, f"SAM 2.1 Hiera {size}", remedy)
    model.load_state_dict(found, strict=False)
    origin = f"{weights} ({path.name})" if _is_hub_name(weights) else path.name
    return _WeightsOrigin(origin, absent)


def _describe_origin(loaded: _WeightsOrigin, weights: str) -> str:
    """The origin of a model's weights; what stays random is named there and on the terminal."""
    if not loaded.absent:
        return loaded.origin
    parts = ", ".join(loaded.absent)
    log(f"--weights {weights}: holds no {parts}: random weights there")
    return f"{loaded.origin}, without {parts}"


def _part_of(name: str) -> str:
    """ "image_encoder.trunk.blocks.0…" → "image_encoder.trunk", "sam_mask_decoder.…" → "sam_mask_decoder"."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "image_encoder" else words[0]


def _is_hub_name(weights: str) -> bool:
    return weights.startswith("facebook/") and not Path(weights).exists()


def _download_checkpoint(name: str, size: EncoderName) -> Path:
    """The file of a hub's name, as it is now, or with @REVISION as it was then, and with #SHA256 that one or none."""
    said = _HUB_NAME.fullmatch(name)
    published = next((p for p in _PUBLISHED.values() if said and p.repository == said["repository"]), None)
    if said is None or published is None:
        names = ", ".join(p.repository for p in _PUBLISHED.values())
        raise InputError(
            f"--weights {name}: must be one of {names}, with @REVISION and #SHA256 behind it or without; got another"
        )
    if published != _PUBLISHED[size]:
        right = next(s for s, p in _PUBLISHED.items() if p == published)
        raise InputError(
            f"--weights {name}: must fit --encoder {size}, is for {right}; add --encoder {right}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise need("huggingface-hub", "teacher") from None
    try:  # it shows its own progress, and caches
        path = Path(hf_hub_download(published.repository, published.file, revision=said["revision"]))
    except Exception as error:  # the hub raises many kinds: httpx's, its own, OSError
        if not is_damage(error) and not isinstance(error, OSError):
            raise
        raise InputError(
            f"--weights {name}: must be downloaded once, the hub cannot be reached ({type(error).__name__}); "
            f"fetch {published.file} on another machine and pass its path"
        ) from None
    if said["sha256"] and (found := hash_file(path).sha256) != said["sha256"]:
        raise InputError(
            f"--weights {name}: must have the sha256 {said['sha256'][:12]}…, {path.name} has {found[:12]}…; do not "
            "use it, or give the hash of the one that you mean"
        )
    return path


def _check_kind(found: dict[str, Tensor], weights: str) -> None:
    if any(name.startswith("image_encoder.blocks.") for name in found):
        raise InputError(
            f"--weights {weights}: must be of SAM 2, got SAM 1 (its encoder is a plain ViT); "
            "download SAM 2.1's, such as facebook/sam2.1-hiera-tiny"
        )
    if not any(name.startswith(TRUNK) for name in found):
        raise InputError(
            f"--weights {weights}: must hold tensors named {TRUNK}*, got none; is it a SAM 2 checkpoint?"
        )
