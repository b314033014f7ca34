"""The released X-VLM checkpoints: a function of key names, both ways.

The table of names is official.md 5.2 to 5.6. Official files also carry what our model computes
(Swin's index and mask buffers, BERT's position numbers) and the tied decoder under both names;
timm numbers Swin's ``downsample`` with the stage that follows, the release with the stage before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ALL_HEADS, ModelConfig, VisionConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.reading import Note, Report, account, place

BUFFERS = re.compile(r"(relative_position_index|attn_mask|embeddings\.position_ids)$")

_VISION, _OUR_VISION = "vision_encoder.", "vision.backbone."
_TEXT, _OUR_TEXT = "text_encoder.", "text."
_BERT_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_BERT_LAYER = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_BERT_HEAD = {
    "lm_head.dense.weight": "transform.dense.weight",
    "lm_head.dense.bias": "transform.dense.bias",
    "lm_head.norm.weight": "transform.LayerNorm.weight",
    "lm_head.norm.bias": "transform.LayerNorm.bias",
    "lm_head.bias": "bias",
}
# the decoder under its second name: BERT's name -> the tensor it is tied to
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_OTHER_MODELS = {
    "text_decoder.": "an official VQA or captioning model",
    "cls_head.": "an official NLVR2 model",
    "ta_head.": "an official NLVR2 pre-training model",
}


def bert_name(our_name: str) -> str | None:
    """BERT's name (``bert.`` or ``cls.predictions.``) of a parameter under ``text.``.

    None where BERT has no such parameter (the norms of a pre-norm stack).
    """
    name = our_name.removeprefix(_OUR_TEXT)
    if name in _BERT_HEAD:
        return f"cls.predictions.{_BERT_HEAD[name]}"
    module, _, leaf = name.rpartition(".")
    if module.startswith("embeddings."):
        part = _BERT_EMBEDDINGS.get(module.removeprefix("embeddings."))
        return part and f"bert.embeddings.{part}.{leaf}"
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if layer is None or layer[2] not in _BERT_LAYER:
        return None
    return f"bert.encoder.layer.{layer[1]}.{_BERT_LAYER[layer[2]]}.{leaf}"


def shift_downsample(name: str, by: int) -> str:
    """Swin's ``layers.S.downsample`` as ``layers.S+by.downsample``; other names unchanged."""
    return re.sub(
        r"^layers\.(\d+)\.downsample\.",
        lambda stage: f"layers.{int(stage[1]) + by}.downsample.",
        name,
    )


def official_name(our_name: str) -> str:
    """The name of a parameter in the official pre-training checkpoint.

    Parameters that the official model lacks keep their name below the official prefix.
    """
    if our_name.startswith(_OUR_VISION):
        return _VISION + shift_downsample(our_name.removeprefix(_OUR_VISION), -1)
    if our_name.startswith(_OUR_TEXT):
        return _TEXT + (bert_name(our_name) or our_name.removeprefix(_OUR_TEXT))
    return our_name


@dataclass(frozen=True)
class Converted:
    """A state dict under our names, and what became of every key."""

    state: dict[str, Tensor]
    report: Report


def from_official(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    strict: bool = True,
    source: str = "official checkpoint",
) -> Converted:
    """An official state dict (pre-training, retrieval or grounding), under our names.

    Position tables are resized to the window of ``config``; heads that it does not carry are
    dropped and reported.

    Args:
        state: by official names, with or without ``bert.`` after ``text_encoder.``.
        config: the model that will take it.
        strict: raise where a tensor is missing, unexpected or of another shape.
        source: the file, for the report.

    Raises:
        CheckpointError: ``strict`` and not everything fits; the tied decoder differs from the
            word embeddings; another architecture than the official one.
    """
    _require_official(config)
    target = _on_meta(config).state_dict()
    whole = _on_meta(config.model_copy(update={"heads": ALL_HEADS})).state_dict()
    ours = {official_name(name): name for name in whole}
    tied = {_TEXT + twin: _TEXT + original for twin, original in TIED.items()}

    named: dict[str, tuple[str, Tensor]] = {}
    candidates: dict[str, Tensor] = {}
    dropped: list[Note] = []
    unexpected: list[str] = []
    for key, value in state.items():
        if _with_bert(key) in named:  # under both names
            unexpected.append(key)
        else:
            named[_with_bert(key)] = key, value
    for name, (key, value) in named.items():
        if BUFFERS.search(name):
            dropped.append(Note(key, "computed, not stored"))
        elif name in tied and (original := named.get(tied[name])) is not None:
            if not _same_bits(value, original[1]):
                raise CheckpointError(
                    f"{key} differs from {original[0]}, to which it is tied",
                    where=source,
                    try_="check where the file comes from: it is no official checkpoint",
                )
            dropped.append(Note(key, f"tied to {original[0]}"))
        elif (our_name := ours.get(tied.get(name, name))) is None:
            unexpected.append(key)
        elif our_name not in target:
            dropped.append(Note(key, "this model carries no such head"))
        else:
            candidates[our_name] = value
    placed, report = account(source, candidates, target, dropped, unexpected)
    if strict:
        what, try_ = "the checkpoint does not fit this model", "set model.size=base"
        for prefix, model in _OTHER_MODELS.items():
            if any(key.startswith(prefix) for key in unexpected):
                what = f"this is {model}, which cannot be read into this one"
                try_ = "give the pre-training, retrieval or grounding checkpoint"
        report.require_complete(what, try_=try_)
    return Converted(placed.state, report)


def to_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A state dict of ours under official names, with everything an official file carries.

    With a language-model head the names are those of pre-training (``text_encoder.bert.``),
    without one those of the fine-tuned models (``text_encoder.``). Tensors are shared, not copied.

    Args:
        state: the state dict of a model of ``config``.
        config: its shape.

    Raises:
        CheckpointError: another architecture than the official one, or ``state`` is not of it.
    """
    _require_official(config)
    target = _on_meta(config).state_dict()
    placed = place({name: state[name] for name in target if name in state}, target)
    Report(
        "state dict",
        matched=placed.matched,
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
        mismatched=placed.mismatched
        + tuple(note for note in placed.converted if "resized" in note.note),
    ).require_complete("the weights are not those of the model's shape", try_="xvlm validate")
    official = {official_name(name): state[name] for name in target}
    official.update(_swin_buffers(config.vision))
    positions = torch.arange(config.text.max_positions)[None]
    official[f"{_TEXT}bert.embeddings.position_ids"] = positions
    if "masked_lm" not in config.heads:
        return {key.replace(f"{_TEXT}bert.", _TEXT, 1): value for key, value in official.items()}
    for twin, original in TIED.items():
        official[_TEXT + twin] = official[_TEXT + original]
    return official


def _on_meta(config: ModelConfig) -> XVLM:
    """The model without storage: names and shapes."""
    with torch.device("meta"):
        return XVLM(config)


def _with_bert(key: str) -> str:
    """A key of a fine-tuned checkpoint, as pre-training names it."""
    name = key.removeprefix(_TEXT)
    if name == key or name.startswith(("bert.", "cls.")):
        return key
    return f"{_TEXT}bert.{name}"


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality that holds for NaN too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def _require_official(config: ModelConfig) -> None:
    """The official format has a place for Swin and a post-norm BERT only."""
    vision = config.vision
    differences = [
        what
        for differs, what in (
            (vision.kind != "swin", f"vision.kind is {vision.kind}, not swin"),
            (vision.sine_positions, "vision.sine_positions is on"),
            (config.text.norm_first, "text.norm_first is on"),
        )
        if differs
    ]
    if vision.kind == "swin":
        differences += [
            f"stage {stage}: a grid of {grid} patches is no multiple of the window {window}"
            for stage, (grid, window) in enumerate(_stages(vision))
            if grid % window
        ]
    if differences:
        raise CheckpointError(
            f"a {config.size} model has no place in the official format: {differences[0]}",
            details=differences[1:],
            try_="use model.size=base or model.size=small",
        )


def _stages(vision: VisionConfig) -> list[tuple[int, int]]:
    """Patches a side and window of each Swin stage; a window never exceeds its grid."""
    grids = [vision.image_size // vision.patch_size >> s for s in range(len(vision.depths))]
    return [(grid, min(grid, vision.window_size)) for grid in grids]


def _swin_buffers(vision: VisionConfig) -> dict[str, Tensor]:
    """Offset numbers of every block, shift masks of the odd blocks that do shift."""
    buffers: dict[str, Tensor] = {}
    for stage, (grid, window) in enumerate(_stages(vision)):
        for block in range(vision.depths[stage]):
            prefix = f"{_VISION}layers.{stage}.blocks.{block}."
            buffers[f"{prefix}attn.relative_position_index"] = relative_position_index(window)
            if block % 2 and window // 2 and grid > window:
                buffers[f"{prefix}attn_mask"] = shift_mask(grid, window)
    return buffers


def relative_position_index(window: int) -> Tensor:
    """Row of the relative table for each pair of patches, ``(w * w, w * w)`` int64."""
    side = torch.arange(window)
    places = torch.cartesian_prod(side, side)
    offsets = places[:, None] - places[None, :] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def shift_mask(grid: int, window: int) -> Tensor:
    """Which patches of a shifted window were neighbours, ``(windows, w * w, w * w)`` float32.

    0 where both come from the same region of the picture, -100 elsewhere (Swin, figure 4).
    """
    side = torch.arange(grid)
    # the last window holds patches from both ends: they are told apart at the shift
    region = (side >= grid - window).long() + (side >= grid - window // 2).long()
    label = region[:, None] * 3 + region[None, :]
    n = grid // window
    windows = label.view(n, window, n, window).transpose(1, 2).reshape(n * n, window * window)
    return (windows[:, :, None] != windows[:, None, :]).float() * -100.0
