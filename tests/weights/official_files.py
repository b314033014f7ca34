"""Small official checkpoints of every task, made here: by official names, all values different."""

from __future__ import annotations

import torch
from torch import Tensor

from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.weights.official import to_official
from xvlm_core.weights.official_shape import TASKS

DECODER_LAYERS = 2


def task_config(task: str, **text: int) -> ModelConfig:
    """A small shape of a task: width 64, so that one head of attention is BERT's 64 wide."""
    kind = TASKS[task].kind
    return ModelConfig.model_validate(
        {
            "size": "official",
            "vision": {
                "image_size": 64,
                "embed_dim": 8,
                "depths": (2, 2, 2),
                "num_heads": (1, 2, 2),
                "window_size": 4,
                "mlp_ratio": 2.0,
            },
            "text": {
                "hidden_size": 64,
                "num_layers": 6 if kind == "pairs" else 4,
                "fusion_layer": 2,
                "num_heads": 1,
                "intermediate_size": 32,
                "vocab_size": 30,
                "max_positions": 48,
                "pictures": 2 if kind == "pairs" else 1,
                "causal": kind == "causal",
                **text,
            },
            "embed_dim": 12,
            "heads": TASKS[task].heads,
            "decoder_layers": DECODER_LAYERS if kind == "decoder" else 0,
        }
    )


def our_state(config: ModelConfig) -> dict[str, Tensor]:
    """Random weights of a shape; zeros and ones of a fresh model would hide a swap."""
    with torch.device("meta"):
        names = build_model(config).state_dict()
    draw = torch.Generator().manual_seed(5)
    return {name: torch.rand(value.shape, generator=draw) * 2 - 1 for name, value in names.items()}


def official_file(task: str, **text: int) -> dict[str, Tensor]:
    """An official state dict of a task."""
    config = task_config(task, **text)
    return to_official(our_state(config), config)
