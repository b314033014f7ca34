"""A model folder: ``config.json``, ``model.safetensors`` and ``tokenizer.json``, self-contained.

Written by every checkpoint and by ``xvlm cp``; read by every verb, without a pickle anywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ModelConfig

if TYPE_CHECKING:
    import torch

    from xvlm_core.data.tokenizer import Tokenizer
    from xvlm_core.models.xvlm import XVLM

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class ModelInfo(BaseModel):
    """What ``config.json`` says: the shape, and how texts are to be prepared for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    task: str = Field(description="the task it was trained for")
    about: str = Field("", description="one line for people: which model this is")
    trained_on: str = Field("", description="the data it has seen")
    max_words: int = Field(gt=0)
    max_tokens: int = Field(gt=1)
    compat: Literal["none", "official"] = Field(
        "none", description="of the run that made it: how it is scored, if nothing else is said"
    )
    config: ModelConfig
    answers: tuple[str, ...] = Field((), description="that it chooses from (VQA)")
    prompt: str = Field("", description="what its captions begin with (captioning)")

    @model_validator(mode="after")
    def _texts_fit(self) -> ModelInfo:
        if self.max_tokens > self.config.text.max_positions:
            raise ValueError("max_tokens is larger than config.text.max_positions")
        return self


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer (evaluation mode), its tokenizer, and what it is."""

    model: XVLM
    tokenizer: Tokenizer
    info: ModelInfo


def save_model_folder(folder: Path, model: XVLM, tokenizer: Tokenizer, info: ModelInfo) -> None:
    """Write a model folder (into an existing or a new folder; not atomic by itself)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    leave_out = {name for name in ("answers", "prompt") if not getattr(info, name)}
    values = info.model_dump(mode="json", exclude=leave_out)
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer.save(folder)


def read_info(folder: Path) -> ModelInfo:
    """Read ``config.json`` alone (no torch).

    Raises:
        CheckpointError: the folder is missing, is no model folder, or its config is damaged.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(
            f"no model folder {folder}",
            try_="xvlm ls runs  (lists the models that are there)",
        )
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no {CONFIG}",
            try_="xvlm ls runs  (lists the models that are there)",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", try_=f"ls -l {folder}  (who may read it?)"
        ) from None
    except UnicodeDecodeError as error:
        raise _no_model(path, str(error)) from None
    _refuse_newer(folder, text)
    try:
        return ModelInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise _no_model(path, f"{key}: {reason}" if key else reason) from None


def _no_model(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not describe an xvlm model: {reason}",
        where=str(path),
        try_="give the folder of a run or of a copied model (xvlm ls runs)",
    )


def _refuse_newer(folder: Path, text: str) -> None:
    """A newer format may have fields that this version does not know: say so first."""
    try:
        version = json.loads(text)["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} was written by a newer xvlm (format {version})",
            try_="pip install --upgrade xvlm",
        )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict of a model folder.

    Raises:
        CheckpointError: missing, truncated or otherwise unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}", try_="give the folder of a complete checkpoint"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated: {error}",
            try_="use another checkpoint of the run (xvlm ls runs), or copy the file again",
        ) from None
    return state


def load_weights(model: XVLM, folder: Path) -> None:
    """Load the weights of a model folder into a model of the same shape, strictly.

    Raises:
        CheckpointError: damaged, or of another shape; the first differences are listed.
    """
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in read_weights(folder).items()
    }
    own = model.state_dict()
    wrong = [f"missing: {name}" for name in own if name not in state]
    wrong += [f"unknown: {name}" for name in state if name not in own]
    wrong += [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{folder} holds a model of another shape ({len(wrong)} entries differ)",
            details=wrong[:5],
            try_="take the size and heads from the checkpoint's config.json",
        )
    model.load_state_dict(state)


def load_model_folder(folder: Path) -> LoadedModel:
    """Build the model a folder describes and load it, on the CPU, in evaluation mode.

    Weights kept in half precision are brought back to float32.

    Raises:
        CheckpointError: missing, damaged, truncated or inconsistent.
    """
    from xvlm_core.models.build import build_model

    info = read_info(folder)
    model = build_model(info.config).eval()
    load_weights(model, folder)
    return LoadedModel(model, read_tokenizer(folder, info), info)


def read_tokenizer(folder: Path, info: ModelInfo) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        CheckpointError: missing, damaged, or of another vocabulary than the model.
    """
    from xvlm_core.data.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    except Exception as error:
        raise CheckpointError(
            f"{folder / TOKENIZER} is missing or damaged: {error}",
            try_="give the folder of a complete checkpoint",
        ) from None
    if tokenizer.vocab_size != info.config.text.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer knows {tokenizer.vocab_size} pieces, the model "
            f"{info.config.text.vocab_size}",
            try_="give the folder of a complete checkpoint",
        )
    return tokenizer
