"""A recorded case: its model, its tensors, and how close "equal" is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ALL_HEADS, Head, ModelConfig, TextConfig, VisionConfig
from xvlm_core.models.text import TextStates
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official import from_official


def model_config(config: dict[str, Any], heads: tuple[Head, ...] = ALL_HEADS) -> ModelConfig:
    """The shape of a recorded model; cases without a contrastive head record no joint space."""
    swin, bert = config["swin"], config["bert"]
    return ModelConfig(
        size="golden",
        vision=VisionConfig(
            image_size=swin["image_res"],
            patch_size=swin["patch_size"],
            embed_dim=swin["embed_dim"],
            depths=tuple(swin["depths"]),
            num_heads=tuple(swin["num_heads"]),
            window_size=swin["window_size"],
            mlp_ratio=swin["mlp_ratio"],
        ),
        text=TextConfig(
            hidden_size=bert["hidden_size"],
            num_layers=bert["num_hidden_layers"],
            fusion_layer=bert["fusion_layer"],
            num_heads=bert["num_attention_heads"],
            intermediate_size=bert["intermediate_size"],
            vocab_size=bert["vocab_size"],
            max_positions=bert["max_position_embeddings"],
            type_vocab_size=bert["type_vocab_size"],
            layer_norm_eps=bert["layer_norm_eps"],
        ),
        embed_dim=config.get("embed_dim", 32),
        temperature=config.get("temp", 0.07),
        heads=heads,
    )


@dataclass(frozen=True)
class Case:
    folder: Path
    meta: dict[str, Any]
    io: dict[str, Tensor]
    model: XVLM

    @classmethod
    def read(cls, folder: Path) -> Case:
        meta = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        config = model_config(meta["config"])
        model = XVLM(config).eval()
        converted = from_official(load_file(folder / "weights.safetensors"), config)
        model.load_state_dict(converted.state, strict=True)
        return cls(folder, meta, load_file(folder / "io.safetensors"), model)

    def equal(self, name: str, value: Tensor, where: Tensor | None = None) -> None:
        """The recorded tensor is reproduced (where: real tokens only)."""
        assert_close(name, value, self.io[name], where)


def assert_close(name: str, value: Tensor, reference: Tensor, where: Tensor | None = None) -> None:
    value = value.detach()
    assert value.shape == reference.shape, f"{name}: {tuple(value.shape)}"
    if not reference.is_floating_point():
        assert torch.equal(value.to(reference.dtype), reference), name
        return
    tolerance = 1e-3 if name.startswith("grad_") else 1e-4
    gap = (value - reference).abs()
    if where is not None:
        gap = gap[where]
        reference = reference[where]
    limit = tolerance * max(1e-6, reference.abs().max().item())
    assert torch.isfinite(value).all(), f"{name} is not finite"
    assert gap.max().item() <= limit, f"{name}: off by {gap.max().item():.3g}, limit {limit:.3g}"


def packed(ids: Tensor, atts: Tensor) -> PackedTexts:
    return PackedTexts.from_lists(
        [row[: int(mask.sum())].tolist() for row, mask in zip(ids, atts, strict=True)]
    )


def padded(states: TextStates, length: int, rows: range | None = None) -> Tensor:
    """``(B, length, D)``, zeros where the recorded run computed padding."""
    rows = rows if rows is not None else range(states.packing.n_texts)
    out = states.hidden_ND.new_zeros(len(rows), length, states.hidden_ND.shape[1])
    for i, b in enumerate(rows):
        start, own = states.packing.starts[b], states.packing.lengths[b]
        out[i, :own] = states.hidden_ND[start : start + own]
    return out
