"""First weights of a model from the folder of another one, of its own arrangement or not.

A model of another arrangement than pre-training's takes the weights of a pre-trained one as the
released code does (official.md 5.3). For NLVR2 each cross layer feeds two: the one that looks at
the first picture and the one that looks at the second; the keys and values that these share are
there once. For VQA the cross layers feed the answer decoder as well, which looks at questions: its
keys and values stay fresh where pictures are of another width than texts. A captioner is the very
stack of pre-training, used from left to right: nothing in it is fresh. Released files take the way
of :mod:`xvlm_core.weights.official_names`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.models.build import Kind, kind_of
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.folder import read_info, read_weights
from xvlm_core.weights.interpolate import ABSOLUTE_POSITIONS, RELATIVE_TABLE, resize_positions
from xvlm_core.weights.reading import Note, Report

HEADS = (
    "itm_head",
    "bbox_head",
    "vision_proj",
    "text_proj",
    "temp",
    "text.lm_head",
    "decoder.lm_head",
    "cls_head",
    "ta_head",
)
"""What one task needs and another lacks: left out, or fresh, and said."""

_DECODER_KEYS = re.compile(r"decoder\.layers\.\d+\.cross_attention\.(?:key|value)\.")
DECODER_KEYS = "keys and values of the answer decoder"

_LAYER = re.compile(r"text\.layers\.(\d+)\.")
_KINDS: dict[Kind, str] = {
    "plain": "a model of one picture a text",
    "pairs": "a model of two pictures a text (NLVR2)",
    "decoder": "a model with an answer decoder (VQA)",
    "causal": "a captioner",
}
_FEEDS: dict[Kind, tuple[Kind, ...]] = {"plain": ("plain", "pairs", "decoder", "causal")}
"""The arrangements that a model of another one can start; each can start its own."""


def head_of(name: str) -> str | None:
    """The head that a parameter belongs to, if any; what else may be fresh counts as one."""
    if _DECODER_KEYS.match(name):
        return DECODER_KEYS
    return next((head for head in HEADS if name == head or name.startswith(f"{head}.")), None)


def why_fresh(name: str) -> str:
    """Why a parameter is not taken from the checkpoint."""
    if head_of(name) == DECODER_KEYS:
        return "it looks at questions, what the checkpoint has at pictures"
    return "the checkpoint has no such head"


def feeds(theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Whether a model of their arrangement can start one of ours."""
    one, other = kind_of(theirs), kind_of(ours)
    return one == other or other in _FEEDS.get(one, ())


def sources_of(theirs: ModelConfig, ours: ModelConfig, names: Collection[str]) -> dict[str, str]:
    """Which of their parameters each of ours is taken from, by name.

    Args:
        theirs: the model that weights come from.
        ours: the model that takes them; ``feeds(theirs, ours)``.
        names: of our parameters. The others may lack some of what is told for them.
    """
    if kind_of(ours) in (kind_of(theirs), "causal"):
        return {name: name for name in names}
    if kind_of(ours) == "decoder":
        return {name: _before_copying(name, ours) for name in names}
    assert kind_of(ours) == "pairs", "the arrangements that are known"
    return {name: _before_doubling(name, ours.text.fusion_layer) for name in names}


def _before_copying(name: str, ours: ModelConfig) -> str:
    """The name of a parameter where no decoder is made of the cross layers."""
    inner = name.removeprefix("decoder.")
    looks_at_pictures = _DECODER_KEYS.match(name) and ours.vision.width != ours.text.hidden_size
    if inner == name or looks_at_pictures:
        return name
    if not inner.startswith("layers."):
        return f"text.{inner}"
    _, layer, rest = inner.split(".", 2)
    return f"text.layers.{ours.text.fusion_layer + int(layer)}.{rest}"


def _before_doubling(name: str, fusion_layer: int) -> str:
    """The name of a parameter where cross layers do not come in pairs."""
    found = _LAYER.match(name)
    if found is None or int(found[1]) < fusion_layer:
        return name
    single = fusion_layer + (int(found[1]) - fusion_layer) // 2
    return f"text.layers.{single}.{name[found.end() :]}"


def load_from_folder(model: XVLM, folder: Path) -> Report:
    """Load the weights of a model folder into a model that may differ in heads and arrangement.

    Position tables are resized to the model's picture size. All or nothing is loaded.

    Args:
        model: with its fresh weights.
        folder: of the other model.

    Raises:
        CheckpointError: missing, damaged, of another size, or of an arrangement that this one
            cannot start from.
    """
    theirs, ours = read_info(folder).config, model.config
    if not feeds(theirs, ours):
        raise CheckpointError(
            f"{folder} holds {_KINDS[kind_of(theirs)]}; {_KINDS[kind_of(ours)]} cannot start from "
            "it",
            where=str(folder),
            try_="init.checkpoint=newest-pretrain  (a pre-trained model)",
        )
    state, own = read_weights(folder), model.state_dict()
    source_of = sources_of(theirs, ours, own)
    found = {name: state[source] for name, source in source_of.items() if source in state}
    used = {source_of[name] for name in found}
    missing = [name for name in own if name not in found]
    left_out = [name for name in state if name not in used]
    _require_alike(folder, theirs, ours, _differing(theirs, ours, found, own, missing, left_out))
    fitted, resized = resize_positions(found, own)
    model.load_state_dict(fitted, strict=False)
    converted = {name: what for name, _, what in (line.partition(": ") for line in resized)}
    same = [name for name in found if name not in converted]
    return Report(
        str(folder),
        matched=tuple(name for name in same if source_of[name] == name),
        copied=tuple(
            Note(name, f"from {source_of[name]}") for name in same if source_of[name] != name
        ),
        converted=tuple(Note(name, what) for name, what in converted.items()),
        dropped=tuple(Note(name, "this model carries no such head") for name in left_out),
        fresh=tuple(Note(name, why_fresh(name)) for name in missing),
        numbers={name: value.numel() for name, value in {**state, **own}.items()},
    )


def _differing(
    theirs: ModelConfig,
    ours: ModelConfig,
    found: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    missing: Sequence[str],
    left_out: Sequence[str],
) -> list[str]:
    """What speaks against taking the weights, a line each."""
    lines = _differing_options(theirs, ours)
    lines += [
        f"{name}: {tuple(value.shape)} in the checkpoint, {tuple(own[name].shape)} here"
        for name, value in found.items()
        if value.shape != own[name].shape
        and not name.endswith((RELATIVE_TABLE, ABSOLUTE_POSITIONS))
    ]
    lines += [f"{name}: not in the checkpoint" for name in missing if not head_of(name)]
    lines += [f"{name}: unknown here" for name in left_out if not head_of(name)]
    return lines


def _differing_options(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Options that change what a model computes without changing the shape of any weight."""
    options = {
        "vision": ("kind", "patch_size", "num_heads", "sine_positions"),
        "text": ("num_heads", "layer_norm_eps", "norm_first"),
    }
    return [
        f"{part}.{name}: {one} in the checkpoint, {other} here"
        for part, names in options.items()
        for name in names
        if (one := getattr(getattr(theirs, part), name))
        != (other := getattr(getattr(ours, part), name))
    ]


def _require_alike(
    folder: Path, theirs: ModelConfig, ours: ModelConfig, differing: Sequence[str]
) -> None:
    if not differing:
        return
    more = [f"... and {len(differing) - 5} more"] if len(differing) > 5 else []
    raise CheckpointError(
        f"{folder} holds a model of another size ({theirs.size}) than the recipe's ({ours.size})",
        details=[*differing[:5], *more],
        try_=f"model.size={theirs.size}  (or another init.checkpoint)"
        if theirs.size != ours.size
        else "take image_size and overrides of the run it comes from",
    )
