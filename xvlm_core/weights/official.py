"""The released X-VLM checkpoints of every task, read and written bit for bit.

Names are a function (:mod:`xvlm_core.weights.official_names`). Official files also carry what our
models compute (Swin's index and mask buffers, BERT's position numbers) and tied tensors under both
names; timm numbers Swin's ``downsample`` with the stage that follows, the release with the stage
before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.models.build import build_model, kind_of
from xvlm_core.models.sizes import ALL_HEADS, PAIR_HEADS, ModelConfig
from xvlm_core.weights.official_buffers import official_buffers, require_official
from xvlm_core.weights.official_names import (
    BUFFERS,
    TIED,
    Renaming,
    as_written,
    bert_name,
    official_name,
    shift_downsample,
    text_prefix,
    twins,
)
from xvlm_core.weights.official_shape import TASKS, recognise
from xvlm_core.weights.reading import Note, Report, account, place

__all__ = [
    "BUFFERS",
    "TIED",
    "Converted",
    "bert_name",
    "from_official",
    "official_name",
    "shift_downsample",
    "to_official",
]


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
    """An official state dict, under our names.

    Position tables are resized to the window of ``config``; heads that the model does not carry
    are dropped and reported. A pre-training file feeds the models of the tasks as the released
    code does (see :class:`~xvlm_core.weights.official_names.Renaming`): what they have in
    addition is missing then.

    Args:
        state: by official names, with or without ``bert.`` after ``text_encoder.``.
        config: the model that will take it.
        strict: raise where a tensor is missing, unexpected or of another shape.
        source: the file, for the report.

    Raises:
        CheckpointError: ``strict`` and not everything fits; tensors that are tied differ; another
            architecture than the official one.
    """
    require_official(config)
    target = _on_meta(config)
    ours = {_official(name, config): name for name in _on_meta(_with_every_head(config))}
    tied_to = twins(config)
    if "masked_lm" not in config.heads:  # the file may carry a head that the model lacks
        tied_to |= twins(_with_every_head(config))
    buffers = official_buffers(config)
    renaming = Renaming.of(state, config)

    named: dict[str, tuple[str, Tensor]] = {}
    candidates: dict[str, Tensor] = {}
    computed: list[Note] = []
    tied: list[Note] = []
    dropped: list[Note] = []
    unexpected: list[str] = []
    warnings: list[str] = []
    for key, value in state.items():
        for name in renaming(key):
            if name in named:  # under both names
                unexpected.append(key)
            else:
                named[name] = key, value
    for name, (key, value) in named.items():
        original = named.get(tied_to.get(name, ""))
        if BUFFERS.search(name):
            computed.append(Note(key, "computed, not stored"))
            if _is_another(value, buffers.get(name)):
                warnings.append(f"{key} is not what the architecture gives: computed anew")
        elif original is not None:
            if not same_bits(value, original[1]):
                raise CheckpointError(
                    f"{key} differs from {original[0]}, to which it is tied",
                    where=source,
                    try_="check where the file comes from: it is no official checkpoint",
                )
            if key != original[0]:
                tied.append(Note(key, f"tied to {original[0]}"))
        elif (our_name := ours.get(tied_to.get(name, name))) is None:
            unexpected.append(key)
        elif our_name not in target:
            dropped.append(Note(key, "this model carries no such head"))
        else:
            candidates[our_name] = value
    placed, report = account(source, candidates, target, dropped, list(dict.fromkeys(unexpected)))
    report = replace(
        report,
        computed=tuple(dict.fromkeys(computed)),
        tied=tuple(tied),
        warnings=tuple(warnings),
    )
    if strict:
        _require_complete(report, state, config)
    return Converted(placed.state, report)


def _require_complete(report: Report, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    what, try_ = "the checkpoint does not fit this model", "set model.size=base"
    found = recognise(state)
    if found is not None and TASKS[found].kind != kind_of(config):
        what = f"this is {TASKS[found].about}, which cannot be read into this model"
        try_ = "give the pre-training checkpoint, or the one of this task"
    report.require_complete(what, try_=try_)


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
    require_official(config)
    target = _on_meta(config)
    placed = place({name: state[name] for name in target if name in state}, target)
    Report(
        "state dict",
        matched=placed.matched,
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
        mismatched=placed.mismatched
        + tuple(note for note in placed.converted if "resized" in note.note),
    ).require_complete("the weights are not those of the model's shape", try_="xvlm validate")
    official = {_official(name, config): state[name] for name in target}
    for twin, original in twins(config).items():
        official[twin] = official[original]
    official.update(official_buffers(config))
    return {as_written(name, config): value for name, value in official.items()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality that holds for NaN too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def _is_another(value: Tensor, expected: Tensor | None) -> bool:
    """Whether a buffer of the file says something else (at another window its shape differs)."""
    if expected is None or value.is_meta or value.shape != expected.shape:
        return False
    return not torch.equal(value.to(expected.dtype), expected)


def _official(our_name: str, config: ModelConfig) -> str:
    return official_name(our_name, text=text_prefix(config))


def _with_every_head(config: ModelConfig) -> ModelConfig:
    heads = ALL_HEADS + (PAIR_HEADS if config.text.pictures == 2 else ())
    return config.model_copy(update={"heads": heads})


@functools.lru_cache(maxsize=16)
def _on_meta(config: ModelConfig) -> Mapping[str, Tensor]:
    """The state dict of a model without storage: names and shapes."""
    with torch.device("meta"):
        return MappingProxyType(build_model(config).state_dict())
