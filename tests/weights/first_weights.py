"""Models that take first weights, and an ImageNet Swin and a BERT to take them from."""

from __future__ import annotations

import json

import timm
import torch
from transformers import BertConfig

from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig
from xvlm_core.models.xvlm import XVLM


def config(text=None, vision=None, **changes):
    return ModelConfig(
        vision=VisionConfig(
            **{
                "image_size": 64,
                "embed_dim": 8,
                "depths": (2, 2, 2),
                "num_heads": (1, 2, 2),
                "window_size": 4,
                **(vision or {}),
            }
        ),
        text=TextConfig(
            **{
                "hidden_size": 16,
                "num_layers": 4,
                "fusion_layer": 2,
                "num_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 50,
                "max_positions": 12,
                **(text or {}),
            }
        ),
        embed_dim=8,
        **changes,
    )


def new_model(seed=0, **parts):
    torch.manual_seed(seed)
    return XVLM(config(**parts)).eval()


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def scrambled(state):
    """Zeros and ones of a fresh model would hide a swap."""
    torch.manual_seed(1)
    return {
        name: torch.rand_like(value) - 0.5 if value.is_floating_point() else value
        for name, value in state.items()
    }


def swin(vision=None, num_classes=7):
    shape = config(vision=vision).vision
    return timm.models.swin_transformer.SwinTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.embed_dim,
        depths=shape.depths,
        num_heads=shape.num_heads,
        window_size=shape.window_size,
        num_classes=num_classes,
    ).eval()


def bert_config(**changes):
    return BertConfig(
        **{
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 50,
            "max_position_embeddings": 12,
            **changes,
        }
    )


def write_folder(folder, bert, state=None, **changes):
    folder.mkdir(exist_ok=True)
    torch.save(bert.state_dict() if state is None else state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({**json.loads(bert.config.to_json_string()), "model_type": "bert", **changes})
    )
    return folder
