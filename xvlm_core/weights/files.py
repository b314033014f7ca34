"""Weights written to a place that nobody reads yet, and read back: the same bits, or an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xvlm_core.errors import CheckpointError, OutputError
from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.weights.folder import ModelInfo, read_info, read_weights, save_model_folder
from xvlm_core.weights.official import same_bits, to_official
from xvlm_core.weights.reading import TORCH_SUFFIXES, read_state_file

if TYPE_CHECKING:
    from xvlm_core.data.tokenizer import Tokenizer

FILE_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")


def write_official_file(path: Path, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write an official checkpoint: ``{"model": ..., "config": ...}``, or a safetensors file.

    Args:
        path: the file; its ending says which (see ``FILE_SUFFIXES``).
        state: a state dict of ours.
        config: its shape.

    Raises:
        CheckpointError: the model has no place in the official format; what was written is not
            what is read.
        OutputError: the place cannot be written.
    """
    official = to_official(state, config)
    if path.suffix == ".safetensors":
        # that format has no shared memory: tied tensors are written twice
        with _writing(path):
            save_file({key: value.clone() for key, value in official.items()}, path)
    else:
        about = {
            "image_res": config.vision.image_size,
            "patch_size": config.vision.stride,
            "use_swin": True,
            "use_clip_vit": False,
            "use_roberta": False,
            "embed_dim": config.embed_dim,
        }
        with _writing(path):
            torch.save({"model": official, "config": about}, path)
    _compare(path, official, read_state_file(path))


def write_folder(
    folder: Path, state: Mapping[str, Tensor], tokenizer: Tokenizer, info: ModelInfo
) -> None:
    """Write a model folder from a state dict, whatever the model's class.

    Raises:
        CheckpointError: what was written is not what is read.
        OutputError: the place cannot be written.
    """
    with torch.device("meta"):
        model = build_model(info.config)
    model.load_state_dict(dict(state), assign=True)
    with _writing(folder):
        save_model_folder(folder, model, tokenizer, info)
    _compare(folder, state, read_weights(folder))
    assert read_info(folder) == info


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """The libraries say in ways of their own that a disk is full."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise OutputError(
            f"{path.name} cannot be written: {reason}",
            where=str(path.parent),
            try_="free some space (df -h .), or write elsewhere",
        ) from error


def _compare(path: Path, written: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    if written.keys() != read.keys() or not all(
        same_bits(value, read[name]) for name, value in written.items()
    ):
        raise CheckpointError(
            f"{path.name} differs after writing", where=str(path), try_="the same command again"
        )
