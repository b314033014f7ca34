"""What an official checkpoint is, read off its keys and shapes: its task, picture size, widths."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.models.build import Kind, kind_of
from xvlm_core.models.sizes import ALL_HEADS, SIZES, Head, ModelConfig, TextConfig, VisionConfig
from xvlm_core.weights.official_names import DECODER, TEXT, VISION, with_bert

HEAD_WIDTH = 64
"""Width of a head of attention in BERT of every size: no shape in a file shows it."""


@dataclass(frozen=True)
class OfficialTask:
    """A model of the released code.

    Attributes:
        about: what it is, for people.
        kind: the arrangement of its stacks.
        heads: what stands on them.
        max_words: words of a text that its training keeps (official.md 3.0).
        max_tokens: tokens of a text that its training keeps.
        prompt: what the captions that it learns begin with.
    """

    about: str
    kind: Kind
    heads: tuple[Head, ...]
    max_words: int = 30
    max_tokens: int = 40
    prompt: str = ""


_RETRIEVAL: tuple[Head, ...] = ("contrastive", "matching")
TASKS: dict[str, OfficialTask] = {
    "pretrain": OfficialTask("an official pre-training model", "plain", ALL_HEADS, 40, 40),
    "retrieval": OfficialTask("an official retrieval model", "plain", _RETRIEVAL),
    "weak_grounding": OfficialTask("an official weak grounding model", "plain", _RETRIEVAL),
    "grounding": OfficialTask("an official grounding model", "plain", ("box",)),
    "nlvr2": OfficialTask("an official NLVR2 model", "pairs", ("statement",)),
    "nlvr2_pretrain": OfficialTask(
        "an official NLVR2 pre-training model", "pairs", ("pair_assignment",), 40, 40
    ),
    "vqa": OfficialTask("an official VQA model", "decoder", ()),
    "captioning": OfficialTask(
        "an official captioning model", "causal", ("masked_lm",), 40, 40, "a picture of "
    ),
}


def recognise(keys: Iterable[str]) -> str | None:
    """The task of an official checkpoint, from its keys; None: it is none.

    Retrieval and weak grounding have the same keys: both are ``retrieval``.
    """
    found = {".".join(key.split(".")[:2]) for key in keys}
    tops = {name.split(".")[0] for name in found}
    if "vision_encoder" not in tops:
        return None
    if "text_decoder" in tops:
        return "vqa" if "text_encoder" in tops else "captioning"
    if "text_encoder" not in tops:
        return None
    if "cls_head" in tops:
        return "nlvr2"
    if "ta_head" in tops:
        return "nlvr2_pretrain"
    if "text_encoder.cls" in found or {"itm_head", "bbox_head"} <= tops:
        return "pretrain"
    if "bbox_head" in tops:
        return "grounding"
    return "retrieval" if "itm_head" in tops else None


def tasks_within(config: ModelConfig) -> tuple[str, ...]:
    """The tasks whose released models a model of this shape holds whole."""
    fed: dict[str, tuple[str, ...]] = {"plain": ("plain", "causal")}
    kinds = fed.get(kind_of(config), (kind_of(config),))
    return tuple(
        name
        for name, task in TASKS.items()
        if task.kind in kinds and set(task.heads) <= set(config.heads)
    )


def as_task(config: ModelConfig, task: str) -> ModelConfig:
    """The shape of the model of a task that :func:`tasks_within` names."""
    assert task in tasks_within(config), task
    text = config.text.model_copy(update={"causal": TASKS[task].kind == "causal"})
    return config.model_copy(update={"heads": TASKS[task].heads, "text": text})


@dataclass(frozen=True)
class Shape:
    """The shape of a model, and what had to be taken for granted."""

    config: ModelConfig
    notes: tuple[str, ...]


def shape_of(
    state: Mapping[str, Tensor],
    task: str,
    *,
    text_heads: int | None = None,
    source: str = "official checkpoint",
) -> Shape:
    """The shape of the model that an official checkpoint holds.

    Args:
        state: by official names.
        task: what :func:`recognise` says that it is.
        text_heads: heads of the text stack's attention; None: 64 wide each.
        source: the file, for messages.

    Raises:
        CheckpointError: a tensor that the shape is read off is missing or of another form.
    """
    wanted = TASKS[task]
    reader = _Reader(state, source)
    vision, notes = _vision(reader)
    prefix = DECODER if not any(k.startswith(TEXT) for k in state) else TEXT
    text, more = _text(reader, f"{prefix}bert.", text_heads)
    projection = state.get("vision_proj.weight")
    try:
        config = ModelConfig(
            size=_size(vision, text),
            vision=VisionConfig(**vision),
            text=TextConfig(
                **text,
                pictures=2 if wanted.kind == "pairs" else 1,
                causal=wanted.kind == "causal",
            ),
            embed_dim=256 if projection is None else len(projection),
            heads=wanted.heads,
            decoder_layers=len(reader.numbers(rf"{re.escape(DECODER)}bert\.encoder\.layer\.(\d+)"))
            if wanted.kind == "decoder"
            else 0,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise reader.no_model(first["msg"].removeprefix("Value error, ")) from None
    assert kind_of(config) == wanted.kind
    return Shape(config, (*notes, *more))


class _Reader:
    """Shapes by canonical names."""

    def __init__(self, state: Mapping[str, Tensor], source: str) -> None:
        self.shapes = {with_bert(key): tuple(value.shape) for key, value in state.items()}
        self.source = source

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        found = self.shapes.get(name)
        if found is None:
            raise self.no_model(f"it has no {name}")
        if len(found) != dimensions or not all(found):
            raise self.no_model(f"{name} has the shape {list(found)}")
        return found

    def numbers(self, pattern: str) -> list[int]:
        """The different numbers in names that begin so, ascending."""
        found = (re.match(pattern + r"\.", name) for name in self.shapes)
        return sorted({int(match[1]) for match in found if match})

    def root(self, name: str, value: int) -> int:
        """A whole square root."""
        root = math.isqrt(value)
        if root * root != value:
            raise self.no_model(f"{name} has {value} rows, which is no square")
        return root

    def no_model(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"the shape of the model cannot be read off its tensors: {why}",
            where=self.source,
            try_="check where the file comes from: is it an official X-VLM checkpoint?",
        )


def _vision(reader: _Reader) -> tuple[dict[str, object], list[str]]:
    layers = rf"{re.escape(VISION)}layers"
    n_stages = len(reader.numbers(rf"{layers}\.(\d+)"))
    depths, heads, windows = [], [], []
    for stage in range(n_stages):
        depths.append(len(reader.numbers(rf"{layers}\.{stage}\.blocks\.(\d+)")))
        table = f"{VISION}layers.{stage}.blocks.0.attn.relative_position_bias_table"
        offsets, stage_heads = reader.shape(table, 2)
        heads.append(stage_heads)
        windows.append((reader.root(table, offsets) + 1) // 2)
    if not windows:
        raise reader.no_model(f"it has no {VISION}layers")
    width, _, patch, _ = reader.shape(f"{VISION}patch_embed.proj.weight", 4)
    inner, _ = reader.shape(f"{VISION}layers.0.blocks.0.mlp.fc1.weight", 2)
    image, notes = _image_size(reader, windows, patch, patch << (n_stages - 1))
    return {
        "image_size": image,
        "patch_size": patch,
        "embed_dim": width,
        "depths": tuple(depths),
        "num_heads": tuple(heads),
        "window_size": max(windows),
        "mlp_ratio": inner / width,
    }, notes


def _image_size(
    reader: _Reader, windows: list[int], patch: int, stride: int
) -> tuple[int, list[str]]:
    """From the windows of the first shift mask, or from a last stage that is one window."""
    mask = f"{VISION}layers.0.blocks.1.attn_mask"
    if mask in reader.shapes:
        n_windows, *_ = reader.shape(mask, 3)
        return reader.root(mask, n_windows) * windows[0] * patch, []
    image = windows[-1] * stride
    if windows[-1] < max(windows):  # no window exceeds its grid: so it is the whole grid
        return image, []
    return image, [f"the file has no {mask}: {image} px, at which the last stage is one window"]


def _text(reader: _Reader, prefix: str, text_heads: int | None) -> tuple[dict[str, int], list[str]]:
    words, width = reader.shape(f"{prefix}embeddings.word_embeddings.weight", 2)
    positions, _ = reader.shape(f"{prefix}embeddings.position_embeddings.weight", 2)
    types, _ = reader.shape(f"{prefix}embeddings.token_type_embeddings.weight", 2)
    inner, _ = reader.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)
    layer = rf"{re.escape(prefix)}encoder\.layer\.(\d+)"
    crosses = reader.numbers(rf"{layer}\.crossattention\.self\.query")
    if not crosses:
        raise reader.no_model("no layer of the text stack has cross-attention")
    notes = []
    if text_heads is None:
        if width % HEAD_WIDTH:
            raise CheckpointError(
                f"the file does not say how many heads share the width of {width}",
                where=reader.source,
                try_="--text-heads N",
            )
        text_heads = width // HEAD_WIDTH
        notes.append(
            f"{text_heads} heads of the text stack's attention, {HEAD_WIDTH} wide each, as in "
            "BERT (the file does not say)"
        )
    return {
        "hidden_size": width,
        "num_layers": len(reader.numbers(layer)),
        "fusion_layer": crosses[0],
        "num_heads": text_heads,
        "intermediate_size": inner,
        "vocab_size": words,
        "max_positions": positions,
        "type_vocab_size": types,
    }, notes


def _size(vision: Mapping[str, object], text: Mapping[str, int]) -> str:
    """The named size that a shape is of, or ``official``."""
    for name, build in SIZES.items():
        shape = build()
        if all(
            getattr(shape.vision, key) == vision[key] for key in ("embed_dim", "depths")
        ) and all(getattr(shape.text, key) == text[key] for key in ("hidden_size", "fusion_layer")):
            return name
    return "official"
